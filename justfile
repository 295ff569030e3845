# `just` lists the tasks.
_default:
    @just --list --unsorted

# Everything that CI runs
test *PHASES:
    ./test {{PHASES}}

# Before each commit: format, lints, structure, tests, docs, licences
check:
    cargo fmt --all
    cargo clippy --workspace --all-targets -- -D warnings
    cargo test --quiet --package strata-tests --test structure
    cargo nextest run --workspace
    RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps
    if cargo deny --version >/dev/null 2>&1; then cargo deny --offline check bans licenses sources; fi

# The static release binary
dist:
    cargo dist
    @ls -l "${CARGO_TARGET_DIR:-target}/$(rustc --print host-tuple)/release/strata"

# Unit tests of one crate, for example `just unit layer`
unit CRATE *ARGS:
    cargo nextest run --package strata-{{CRATE}} {{ARGS}}

# End-to-end tests whose name contains FILTER, with the release binary
e2e FILTER="": dist
    STRATA_BIN="$(realpath "${CARGO_TARGET_DIR:-target}/$(rustc --print host-tuple)/release/strata")" cargo nextest run --package strata-tests {{FILTER}}

# The sandbox's privileged tests on another kind of host: Debian's kernel, cgroup v2 alone, AppArmor; in QEMU
test-vm FILTER="":
    tests/vm/run {{FILTER}}

# The Debian, busybox and synthetic test images, made once and kept
images *NAMES:
    cargo run --quiet --package strata-tests --bin test-images -- {{NAMES}}

# A fuzz target for some seconds: `just fuzz tar 300`; `all` shares the time
fuzz TARGET="all" SECONDS="60":
    fuzz/run {{TARGET}} {{SECONDS}}

# Criterion benchmark of layer lookup
bench *ARGS:
    cargo bench --package strata-benches --bench lookup -- {{ARGS}}

# Every published figure from one run, also written to benches/results/
figures *ARGS: dist
    cargo run --release --package strata-benches --bin figures -- {{ARGS}}

# Images to and from a registry and archives, beside docker, podman, containerd and others; to benches/results/ as well
bench-images *ARGS: dist
    cargo run --release --package strata-benches --bin figures -- images {{ARGS}}

# Starting, joining and keeping containers beside crun, runc, bubblewrap and podman; to benches/results/ as well
bench-sandbox *ARGS: dist
    cargo run --release --package strata-benches --bin figures -- sandbox idle {{ARGS}}

# The file system beside overlayfs, fuse-overlayfs and a plain folder; figures and a picture to benches/results/
bench-fs *ARGS: dist
    cargo run --release --package strata-benches --bin bench-fs -- {{ARGS}}

# The order of the program's functions for the linker, from what a start uses: after large changes (x86-64, root)
code-order:
    STRATA_LINK_MAP="$(realpath target)/strata.map" cargo dist
    STRATA_LINK_MAP="$(realpath target)/strata.map" cargo run --package strata-benches --bin code-order

# Licences, sources and banned crates of all dependencies
deny:
    cargo deny check bans licenses sources

# The first thing to show somebody
quickstart:
    ./quickstart
