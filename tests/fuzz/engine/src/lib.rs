//! Only here so that cargo builds libFuzzer; `make fuzz` links the archive into the targets.
