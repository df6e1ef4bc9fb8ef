//! The contract of storage drivers: what every one of them must do, as checks that run on any.
//!
//! [`storage_driver_contract!`](crate::storage_driver_contract) makes one test of each check; [`run()`]
//! makes them one after the other and reports, which is what `gantryd kit storage` does. Who unpacks
//! and archives layers is given by the caller, as in the daemon: a [`Mover`].
//!
//! Needs root; without it every check is skipped, and says so. A driver declares its abilities, and what
//! it does not declare is skipped and said too. What every driver must do it cannot declare away.
//!
//! # Map
//!
//! - [`CASES`]: the list, with numbers and levels
//! - [`Subject`], [`Fixture`]: what is tried, and what checks are given
//! - [`run()`], [`test()`]: making checks
//! - [`child`]: the part of a process that will be killed
//! - `contract` … `trips`: the checks
//! - `disks`: file systems in files

#![expect(clippy::unwrap_used, reason = "checks are tests, and end by panicking")]

mod child;
mod concurrency;
mod content;
mod contract;
mod crashes;
mod deadlines;
mod disks;
mod files;
mod fixture;
mod hygiene;
mod limits;
mod metadata;
mod run;
mod subject;
mod trips;

pub use child::{child, is_child};
pub use concurrency::*;
pub use content::*;
pub use contract::*;
pub use crashes::*;
pub use deadlines::*;
pub use files::*;
pub use fixture::Fixture;
pub use hygiene::*;
pub use limits::*;
pub use metadata::*;
pub use run::{Case, Check, Outcome, Report, Selection, probe, run, test};
pub use subject::{Made, MakeDriver, Making, Mover, Subject};
pub use trips::*;

pub(crate) use fixture::{cx, exists, path_of};

/// Every check with its number, its level and its name; given to whatever macro is named first.
#[doc(hidden)]
#[macro_export]
macro_rules! storage_cases {
    ([$($to:tt)+] $($before:tt)*) => {
        $($to)+! { $($before)*
            1 0 describe_is_stable_across_calls_and_restart,
            2 0 preparing_twice_gives_the_same_plan,
            3 0 preparing_on_another_parent_is_a_conflict,
            4 0 unknown_layers_are_not_found_and_nothing_is_made,
            4 0 unknown_options_are_refused,
            5 0 an_active_layer_cannot_be_a_parent,
            6 0 committing_to_a_taken_name_changes_nothing,
            7 0 a_layer_with_children_is_busy_and_goes_after_them,
            8 1 a_committed_layer_is_read_only,
            9 0 listing_is_complete_under_concurrent_inserts,
            10 0 keys_may_be_long_and_odd_and_differ_in_case_only,
            11 0 plans_stay_within_their_grants,
            12 0 every_call_keeps_its_deadline_and_leaves_nothing_half,
            13 1 files_are_added_changed_truncated_and_deleted,
            14 1 a_whiteout_hides_any_type_of_entry,
            15 1 an_opaque_directory_shows_nothing_from_below,
            16 1 opaque_markers_and_whiteouts_work_side_by_side,
            17 1 a_whiteout_of_nothing_is_harmless,
            18 1 names_like_markers_are_never_misread,
            19 1 renames_over_lower_entries_work,
            20 1 a_merged_directory_is_renamed_or_refused,
            21 1 a_hard_link_within_a_layer_is_one_file,
            22 1 a_hard_link_to_a_lower_file_has_the_right_content,
            23 1 symbolic_links_are_kept_as_they_are,
            24 1 a_parent_that_is_a_link_below_stays_inside,
            25 1 owners_of_every_size_are_kept,
            26 1 modes_survive_with_their_special_bits,
            27 1 times_are_kept_to_the_nanosecond,
            28 1 extended_attributes_are_kept,
            29 1 access_lists_are_kept,
            30 1 devices_and_pipes_are_kept,
            31 1 the_top_directory_keeps_its_attributes,
            32 1 a_sparse_file_stays_small,
            33 1 odd_names_and_sizes_are_kept,
            34 1 many_files_and_deep_paths_work,
            35 1 a_shared_mapping_is_seen_through_another_handle,
            36 1 special_ways_of_writing_work,
            37 1 a_hundred_and_twenty_eight_layers_can_be_read,
            37 1 one_layer_more_than_the_limit_is_refused,
            38 1 concurrent_prepares_work_and_one_commit_wins,
            39 1 containers_on_one_layer_do_not_see_each_other,
            40 1 removing_a_parent_races_cleanly_with_a_child,
            41 1 siblings_can_be_unpacked_at_the_same_time,
            42 1 what_was_archived_unpacks_to_the_same_tree,
            43 1 archiving_twice_gives_the_same_bytes,
            44 1 an_untouched_layer_has_nothing_to_archive,
            45 1 layers_mean_what_a_plain_directory_shows,
            46 2 a_size_is_kept_or_refused,
            47 1 usage_is_what_an_independent_walk_finds,
            48 2 running_out_of_space_is_clean,
            49 2 running_out_of_inodes_is_clean,
            50 2 owners_are_seen_through_a_map,
            51 2 a_process_killed_anywhere_leaves_before_or_after,
            52 2 a_synced_layer_survives_a_power_cut,
            53 2 what_a_dead_process_held_is_released,
            54 1 recovering_twice_is_recovering_once,
            55 1 a_restart_between_prepare_and_commit_is_no_obstacle,
            56 1 a_thousand_cycles_leave_nothing,
            57 1 hostile_archives_stay_inside,
            58 2 new_files_have_the_label_that_was_asked_for,
            59 1 the_root_may_have_any_name,
            60 1 speed_is_reported,
        }
    };
}

/// The list of checks.
macro_rules! list {
    ($($number:literal $level:literal $name:ident),+ $(,)?) => {
        /// All checks, in the order of their numbers.
        pub const CASES: &[Case] = &[$(
            Case {
                number: $number,
                level: $level,
                name: stringify!($name),
                check: |f| Box::pin($name(f)),
            },
        )+];
    };
}
storage_cases!([list]);

/// Defines the tests that every storage driver must pass, in the root of a test crate; `$subject` is a
/// `fn() -> Subject`, and `$possible` says whether the machine has what the driver needs.
#[macro_export]
macro_rules! storage_driver_contract {
    ($subject:path) => {
        $crate::storage_driver_contract!($subject, if true);
    };
    ($subject:path, if $possible:expr) => {
        /// A process of its own, for checks that kill.
        #[test]
        fn child_of_a_check() {
            if $crate::storage::is_child() {
                $crate::storage::child(&$subject());
            }
        }

        $crate::storage_cases!([$crate::storage_driver_tests] $subject, $possible =>);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! storage_driver_tests {
    ($subject:path, $possible:expr =>
        $($number:literal $level:literal $name:ident),+ $(,)?
    ) => {$(
        #[test]
        fn $name() {
            if !$possible {
                eprintln!("skipped: this machine has not what the driver needs");
                return;
            }
            $crate::storage::test($subject, stringify!($name));
        }
    )+};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_the_list_has_a_check() {
        let mut numbers: Vec<_> = CASES.iter().map(|case| case.number).collect();
        assert!(numbers.is_sorted());
        numbers.dedup();
        assert_eq!(numbers, (1..=60).collect::<Vec<_>>());
        assert!(CASES.iter().all(|case| case.level <= 2));
    }
}
