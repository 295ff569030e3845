//! Who the process is: ids and capability sets, given up in the one order that works.

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{self, CapabilitySet as Raw, CapabilitySets};

use super::report::{At, Failure, Step};
use crate::plan::process::{CapabilityPlan, ProcessPlan};

/// Takes user 0 of a fresh user namespace; until then files made by us would have no owner.
///
/// A namespace need not have a user 0. Its powers are there all the same, and who comes in has an id in it already.
pub(crate) fn become_root() -> Result<(), Errno> {
    let unless_absent = |result| match result {
        Err(Errno::INVAL) => Ok(()),
        result => result,
    };
    unless_absent(thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT))?;
    unless_absent(thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT))
}

/// Removes from the bounding set what the container must never get, while that is still allowed.
pub(super) fn limit_bounding_set(plan: &CapabilityPlan) -> Result<(), Failure> {
    for number in 0..64 {
        if plan.bounding.contains(number) {
            continue;
        }
        match thread::remove_capability_from_bounding_set(Raw::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The first number that the kernel does not know: no more follow.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno).at(Step::BoundingSet, usize::try_from(number).unwrap_or(0)),
        }
    }
    Ok(())
}

/// Becomes the user of the container, with exactly the planned capabilities.
pub(super) fn change(plan: &ProcessPlan) -> Result<(), Failure> {
    // Capabilities survive the change of the user id, so that the sets can be made afterwards; exec clears this.
    thread::set_keep_capabilities(true).at(Step::Capabilities, 0)?;
    if let Some(groups) = &plan.groups {
        thread::set_thread_groups(groups).at(Step::Groups, 0)?;
    }
    thread::set_thread_res_gid(plan.gid, plan.gid, plan.gid).at(Step::Gid, 0)?;
    thread::set_thread_res_uid(plan.uid, plan.uid, plan.uid).at(Step::Uid, 0)?;
    let sets = plan.capabilities;
    // What we do not have ourselves nobody can be given: a runtime in a container passes on what it got.
    let owned = thread::capabilities(None).at(Step::Capabilities, 1)?.permitted;
    let permitted = Raw::from_bits_retain(sets.permitted.bits()) & owned;
    thread::set_capabilities(
        None,
        CapabilitySets {
            permitted,
            effective: Raw::from_bits_retain(sets.effective.bits()) & permitted,
            inheritable: Raw::from_bits_retain(sets.inheritable.bits()) & owned,
        },
    )
    .at(Step::Capabilities, 2)?;
    thread::clear_ambient_capability_set().at(Step::Ambient, 0)?;
    for number in 0..64 {
        // Only what is permitted and inheritable can be ambient; the kernel refuses the rest.
        let raw = Raw::from_bits_retain(1 << number);
        if sets.ambient.contains(number) && owned.contains(raw) {
            thread::configure_capability_in_ambient_set(raw, true)
                .at(Step::Ambient, usize::try_from(number).unwrap_or(0))?;
        }
    }
    Ok(())
}
