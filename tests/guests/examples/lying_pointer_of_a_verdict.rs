//! `validate` returns an address behind its memory.

keywheel_guests::raw_guest!("lying-pointer-of-a-verdict", validate: 0xffff_fff0);
