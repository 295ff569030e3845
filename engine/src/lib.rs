//! Images, containers, mounts: what the command line and the API call.
