//! Defines the enums whose names stand in configurations, plans and command lines.

/// A name that no value of an enum has; the message suggests the nearest one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnknownName(String);

/// Defines an enum by its names: `ALL`, `name`, `Display`, `FromStr` with a suggestion, serde as the name,
/// and `clap::ValueEnum` behind the feature `clap`. `$kind` is what an error calls it, `default` names the
/// `Default`.
macro_rules! names {
    (
        $(#[$doc:meta])*
        $enum:ident, $kind:literal $(, default $default:ident)? {
            $($(#[doc = $variant_doc:literal])+ $variant:ident = $name:literal,)+
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $enum { $($(#[doc = $variant_doc])+ $variant,)+ }

        impl $enum {
            /// All values, in the order in which they are listed to people.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The names of [`Self::ALL`].
            pub const NAMES: &[&str] = &[$($name,)+];

            /// The name in files and on command lines.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }

        $(impl Default for $enum {
            fn default() -> Self {
                Self::$default
            }
        })?

        impl std::fmt::Display for $enum {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $enum {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, UnknownName> {
                match text {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(UnknownName(crate::suggest::unknown($kind, text, Self::NAMES))),
                }
            }
        }

        impl serde::Serialize for $enum {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $enum {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text: std::borrow::Cow<'de, str> = serde::Deserialize::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        #[cfg(feature = "clap")]
        impl clap::ValueEnum for $enum {
            fn value_variants<'a>() -> &'a [Self] {
                Self::ALL
            }

            fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
                let help = match self { $(Self::$variant => concat!($($variant_doc),+),)+ };
                Some(clap::builder::PossibleValue::new(self.name()).help(help.trim().trim_end_matches('.')))
            }
        }
    };
}

names! {
    /// How a configuration or a plan file says what takes the place of a layer's MLP.
    ///
    /// `W` is a projection's weight `(out, in)`, `W_ref` the reference layer's, `B A` a low-rank product.
    Form, "form" {
        /// `W_ref`: direct sharing, nothing repaired.
        None = "none",
        /// `W_ref + B A`: the paper's form (Wang et al., arXiv 2502.07832).
        LowRank = "low_rank",
        /// `diag(row_scale) W_ref + B A`.
        ScaledLowRank = "scaled_low_rank",
        /// `diag(row_scale) W_ref diag(col_scale) + B A`.
        RowColumnScaledLowRank = "row_column_scaled_low_rank",
        /// `W_ref`, its output scaled for each channel, beside a few neurons of the layer's own.
        Neurons = "neurons",
        /// `B A`, nothing shared: the baseline of low rank alone.
        LowRankOnly = "low_rank_only",
        /// The layer's own MLP with fewer neurons: structured pruning.
        Pruned = "pruned",
        /// Nothing: the MLP is left out, its output is zero (the layer-pruning baseline).
        Drop = "drop",
    }
}

names! {
    /// What decides which layers change.
    StrategyName, "strategy" {
        /// The cheapest set of layers under the budget, by dynamic programme.
        Optimal = "optimal",
        /// The cheapest layer next, until the budget is met.
        Greedy = "greedy",
        /// Every second layer runs with the MLP of the layer before it.
        Pairs = "pairs",
        /// Groups of layers at the back share the MLP of their first layer.
        Back = "back",
        /// Groups of layers at the front share the MLP of their first layer.
        Front = "front",
        /// Groups of equal size over all layers.
        Groups = "groups",
        /// Every layer gives up the same part of its own MLP; nothing is shared.
        Even = "even",
        /// A list of target and reference layers given by a person.
        Explicit = "explicit",
        /// No layer: what fine-tuning alone makes of the original.
        None = "none",
    }
}

names! {
    /// Where the parameters of a changed layer begin.
    Start, "start", default Zero {
        /// The paper's: `A` random, `B` zero, scales one; a pruned layer begins with its largest neurons.
        Zero = "zero",
        /// The closed-form fit to what the original's MLP computes on calibration text.
        Whitened = "whitened",
    }
}

names! {
    /// How the warm-up weights each token's squared error.
    Weighting, "weighting", default Residual {
        /// All alike, the paper's L2: a few tokens with massive activations decide.
        None = "none",
        /// Divides by the squared norm of the token's residual stream after the layer, which the next norm
        /// divides by: the error as the layers above see it.
        Residual = "residual",
        /// Divides by the squared norm of the token's own MLP output plus a tenth of the median, so that tiny
        /// outputs do not decide either.
        Output = "output",
    }
}

names! {
    /// Which whole MLPs fine-tuning trains beside the recovery parameters.
    TrainMlps, "choice of MLPs", default None {
        /// None, the paper's recipe: the recovery parameters alone.
        None = "none",
        /// Those that several layers run with.
        Shared = "shared",
        /// Those, and every other layer's above the first of them; all, where no layer changes.
        All = "all",
    }
}

names! {
    /// The type that a checkpoint's weights are stored in.
    FloatType, "type" {
        /// IEEE single precision, 4 bytes.
        F32 = "f32",
        /// IEEE half precision, 2 bytes.
        F16 = "f16",
        /// The upper half of single precision, 2 bytes.
        Bf16 = "bf16",
    }
}

names! {
    /// Whether training multiplies matrices in bf16.
    Bf16, "choice of bf16", default Auto {
        /// Where the processor has instructions for it.
        Auto = "auto",
        /// Everywhere.
        On = "on",
        /// Nowhere: float32.
        Off = "off",
    }
}

names! {
    /// Which side of the split of a data file is read.
    Side, "side", default All {
        /// Everything in the file.
        All = "all",
        /// What training sees.
        Train = "train",
        /// What training chooses its best state by.
        Validation = "validation",
        /// What training never sees.
        HeldOut = "held_out",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T>(all: &[T], names: &[&str])
    where
        T: Copy + PartialEq + std::fmt::Debug + std::fmt::Display + std::str::FromStr<Err = UnknownName>,
        T: serde::Serialize + serde::de::DeserializeOwned,
    {
        assert_eq!(all.len(), names.len());
        for (&value, &name) in all.iter().zip(names) {
            assert_eq!(value.to_string(), name);
            assert_eq!(name.parse::<T>().unwrap(), value);
            let json = serde_json::to_string(&value).unwrap();
            assert_eq!(json, format!("\"{name}\""));
            assert_eq!(serde_json::from_str::<T>(&json).unwrap(), value);
        }
    }

    #[test]
    fn every_name_is_read_as_it_is_written() {
        round_trip(Form::ALL, Form::NAMES);
        round_trip(StrategyName::ALL, StrategyName::NAMES);
        round_trip(Start::ALL, Start::NAMES);
        round_trip(Weighting::ALL, Weighting::NAMES);
        round_trip(TrainMlps::ALL, TrainMlps::NAMES);
        round_trip(FloatType::ALL, FloatType::NAMES);
        round_trip(Bf16::ALL, Bf16::NAMES);
        round_trip(Side::ALL, Side::NAMES);
    }

    #[cfg(feature = "clap")]
    #[test]
    fn a_command_line_lists_names_with_their_meaning() {
        use clap::ValueEnum as _;
        let value = Side::HeldOut.to_possible_value().unwrap();
        assert_eq!(value.get_name(), "held_out");
        assert_eq!(value.get_help().unwrap().to_string(), "What training never sees");
    }

    #[test]
    fn a_misspelt_name_gets_a_suggestion() {
        let error = "lowrank".parse::<Form>().unwrap_err().to_string();
        assert_eq!(error, "unknown form `lowrank`; did you mean `low_rank`?");
        let error = serde_json::from_str::<Start>("\"whitend\"").unwrap_err().to_string();
        assert!(error.starts_with("unknown start `whitend`; did you mean `whitened`?"), "{error}");
        let error = "zzzzzzzz".parse::<Bf16>().unwrap_err().to_string();
        assert_eq!(error, "unknown choice of bf16 `zzzzzzzz`; known are auto, on, off");
    }
}
