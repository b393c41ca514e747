//! `validate` returns a verdict of a kind that the contract doesn't have.

/// An answer of which the second word, the kind of verdict, says 200.
#[cfg(target_family = "wasm")]
static NO_SUCH_KIND: [u64; 32] = {
    let mut words = [0; 32];
    words[1] = 200;
    words
};

keywheel_guests::raw_guest!("lying-kind-of-a-verdict", validate: core::ptr::from_ref(&super::NO_SUCH_KIND) as usize);
