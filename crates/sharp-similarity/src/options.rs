//! Says what an analysis measures.

/// What is measured, and how far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The greatest distance between the layers of a pair.
    pub window: usize,
    /// What the model is called in the report.
    pub model: Option<String>,
    /// Measure linear CKA of the layers' own outputs.
    pub cka: bool,
    /// Measure the distance of the weights.
    pub weights: bool,
    /// Measure delta NLL on about so many tokens (the first sequences); 0: do not. Costs half a forward pass
    /// over them for every directed pair, which is most of the time where it is asked for.
    pub delta_nll_tokens: usize,
    /// With delta NLL, also measure the loss with each MLP left out.
    pub removal: bool,
    /// Measure delta NLL in rounds: all replacements on the first quarter of the tokens, the better half of
    /// them on the second, the better half of those on the rest. Half the work, spent where the
    /// decisions lie.
    pub screen: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            window: 2,
            model: None,
            cka: true,
            weights: true,
            delta_nll_tokens: 0,
            removal: true,
            screen: true,
        }
    }
}
