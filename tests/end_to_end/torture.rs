//! `cargo xtask torture` in its short form.

use serde_json::Value;

use crate::fixture::xtask;

#[test]
fn a_server_with_little_memory_stands_clients_of_every_kind() {
    let Some(mut command) = xtask() else { return };
    command.args(["torture", "--server", "--seconds", "4", "--clients", "24", "--memory", "1000", "--json"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(figures["wrong"], 0, "{figures}");
    assert!(figures["same"].as_u64().unwrap() >= 24, "{figures}");
    assert!(figures["hostile"].as_u64().unwrap() > 0 && figures["left"].as_u64().unwrap() > 0, "{figures}");
}
