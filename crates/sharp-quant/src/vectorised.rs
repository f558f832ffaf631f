//! One body in plain Rust, compiled for every instruction set and dispatched at run time.

/// Declares `$name` as a safe function that runs `$body`, compiled anew for each instruction set.
///
/// The body's first generic argument says whether F16C instructions may be used; the others are those in
/// brackets.
macro_rules! vectorised {
    ($(#[$doc:meta])* $vis:vis fn $name:ident / $body:ident [$($generic:ident : $bound:path),*]
     ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)?) => {
        $(#[$doc])*
        $vis fn $name<$($generic: $bound),*>(isa: $crate::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn wide<$($generic: $bound),*>($($arg: $ty),*) $(-> $ret)? {
                    $body::<true, $($generic),*>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
                fn wider<$($generic: $bound),*>($($arg: $ty),*) $(-> $ret)? {
                    $body::<true, $($generic),*>($($arg),*)
                }
                match isa.kind() {
                    // SAFETY: an `Isa` of this kind exists only where the processor has AVX-512 F, BW and VL.
                    $crate::isa::Kind::Avx512Vnni => return unsafe { wider::<$($generic),*>($($arg),*) },
                    // SAFETY: an `Isa` of this kind exists only where the processor has AVX2, FMA and F16C.
                    $crate::isa::Kind::Avx2 => return unsafe { wide::<$($generic),*>($($arg),*) },
                    _ => {}
                }
            }
            let _ = isa;
            $body::<false, $($generic),*>($($arg),*)
        }
    };
}
pub(crate) use vectorised;
