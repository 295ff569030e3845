//! An OCI runtime: namespaces, cgroups, seccomp, landlock.
