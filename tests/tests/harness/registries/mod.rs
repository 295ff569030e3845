//! What users say about registries, in the files and variables that are Docker's, with the binary on both sides.
//!
//! Most of it runs in a network of the test's own, where hosts have names and addresses that are not the machine's loopback:
//! this machine itself is trusted without proof and reached without proxies, so nothing could be seen there.

mod accounts;
mod events;
mod listing;
mod mirrors;
mod proxies;
mod scene;
mod trust;

use strata_tests::tier::Suite;

pub(crate) fn register(suite: &mut Suite) {
    suite.add("registries::unprivileged_all_tags_are_pulled", &[], listing::all_tags);
    suite.add("registries::unprivileged_events_are_told_as_docker_tells_them", &[], events::of_images);
    suite.add("registries::privileged_repositories_are_found", &[], listing::search);
    suite.add("registries::privileged_docker_hub_has_mirrors", &[], mirrors::docker_hub);
    suite.add("registries::privileged_every_registry_has_mirrors", &[], mirrors::any_registry);
    suite.add("registries::privileged_proxies_are_used_as_set", &[], proxies::of_the_environment);
    suite.add("registries::privileged_proxies_of_the_file_come_first", &[], proxies::of_the_file);
    suite.add("registries::privileged_insecure_registries_are_declared", &[], trust::insecure);
    suite.add("registries::privileged_certificates_are_found_as_docker_finds_them", &[], trust::certificates);
    suite.add("registries::rootless_a_users_own_files_count", &[], trust::own_files);
    suite.add("registries::unprivileged_logins_are_kept_as_docker_keeps_them", &[], accounts::logins);
    suite.add("registries::unprivileged_helpers_keep_logins", &[], accounts::helpers);
    suite.add("registries::unprivileged_a_token_may_expire_in_the_middle", &[], accounts::expiring_token);
}
