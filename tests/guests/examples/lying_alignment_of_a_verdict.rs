//! `validate` returns an address where no verdict may lie.

keywheel_guests::raw_guest!("lying-alignment-of-a-verdict", validate: 1027);
