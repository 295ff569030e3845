//! Hands the linker the order of the functions that a start uses (`benches/src/code_order.rs`).

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/code-order.ld");
    println!("cargo::rerun-if-changed={script}");
    println!("cargo::rerun-if-env-changed={MAP}");
    // Where nobody waits for a start, the link would only take longer.
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{script}");
    }
    // From this the order is made.
    if let Ok(map) = std::env::var(MAP) {
        println!("cargo::rustc-link-arg-bins=-Wl,-Map,{map}");
    }
}

/// Where the linker says what it has put where.
const MAP: &str = "STRATA_LINK_MAP";
