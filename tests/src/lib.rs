//! No code: the tests of this package (`end_to_end/`) drive the built programs. Beside them, `golden/` holds files
//! that other implementations computed, each with the script that made it; the crates' own tests read those.
#![forbid(unsafe_code)]
