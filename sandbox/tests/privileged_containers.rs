//! Containers of a busybox root filesystem, started as root.

mod support;

use support::{Container, is_root, rootfs};

#[test]
fn exit_codes_and_output_arrive() {
    if !is_root() {
        return;
    }
    let root = rootfs();
    let output = Container::shell(root.path(), "echo out; echo err >&2; exit 42").run().unwrap();
    assert_eq!((output.code(), output.stdout.as_str(), output.stderr.as_str()), (42, "out\n", "err\n"));
    assert_eq!(Container::new(root.path(), &["true"]).run().unwrap().code(), 0);
}
