//! The union filesystem: layer stack, copy-up, FUSE front end.
