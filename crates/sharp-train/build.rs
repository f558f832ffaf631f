//! Lets binaries, tests and doctests find libtorch's libraries without `LD_LIBRARY_PATH`.
//!
//! torch-sys says where it found libtorch (`DEP_TCH_LIBTORCH_LIB`, which Cargo passes to direct dependents
//! only); that folder becomes the run path of everything this package links.

fn main() {
    println!("cargo::rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB")
        && std::env::var("CARGO_CFG_TARGET_FAMILY").is_ok_and(|f| f == "unix")
    {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
        if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
            // A libtorch with CUDA registers its device from a library that nothing names a symbol of.
            println!("cargo::rustc-link-arg=-Wl,--no-as-needed");
        }
    }
}
