//! The short form of every target: its seeds, its kept corpus, and mutations of both by a fixed
//! seed, so that a failure here is the same failure everywhere. The long form is `make fuzz`.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use keywheel_fuzz::{TARGETS, target};

/// Mutated inputs of each target. All targets together take a few seconds unoptimised.
const MUTATIONS: usize = 3_000;

/// libFuzzer's inputs go as far in the long runs.
const LONGEST: usize = 4_096;

/// Marsaglia's xorshift: the same numbers on every machine and in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits") % end.max(1)
    }

    fn mutated(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = inputs[self.below(inputs.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(6) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                1 if !bytes.is_empty() => bytes[at] = [0, 0xff, 0x7f, 0x80, b'%', b'"'][self.below(6)],
                2 if !bytes.is_empty() => drop(bytes.remove(at)),
                3 => bytes.insert(at, self.below(256).to_le_bytes()[0]),
                4 => bytes.truncate(at),
                // The head of one and the tail of another.
                _ => {
                    let other = &inputs[self.below(inputs.len())];
                    bytes.truncate(at);
                    bytes.extend_from_slice(&other[self.below(other.len())..]);
                }
            }
        }
        bytes.truncate(LONGEST);
        bytes
    }
}

fn holds(name: &str) {
    let target = target(name).expect("a target of that name");
    let run = |what: &str, input: &[u8]| {
        if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
            panic!("{name}: {what} breaks a property (its panic is above): {}", hex::encode(input));
        }
    };
    let mut inputs = (target.seeds)();
    assert!(!inputs.is_empty(), "{name} has no seeds");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut kept: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    kept.sort();
    for path in kept {
        let input = fs::read(&path).expect("a kept input");
        run(&path.display().to_string(), &input);
        inputs.push(input);
    }
    for (number, seed) in (target.seeds)().iter().enumerate() {
        run(&format!("seed {number}"), seed);
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for number in 0..MUTATIONS {
        let input = random.mutated(&inputs);
        run(&format!("mutation {number}"), &input);
    }
}

macro_rules! targets {
    ($($test:ident: $name:literal,)*) => {
        $(#[test]
        fn $test() {
            holds($name);
        })*

        #[test]
        fn every_target_is_replayed_here() {
            let replayed = [$($name),*];
            let all: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(all, replayed);
        }
    };
}

targets! {
    nothing_changed_or_moved_on_disk_is_believed: "artefacts",
    captures_fill_token_keys_alone_and_are_gone_from_the_answer: "capture",
    any_plugin_file_is_told_apart: "component",
    operations_and_reports_survive_a_round_and_show_no_secret: "control",
    no_cookie_leaves_its_own_domain_or_blocks_its_credential: "cookies",
    imports_come_back_from_every_export_and_belong_to_the_service: "formats",
    any_frame_is_a_message_or_a_typed_error: "frames",
    an_external_report_is_refused_in_harmless_words_or_taken_without_its_values: "intake",
    a_web_page_makes_nothing_valid_whatever_a_template_says: "interpreter",
    any_worker_is_ended_in_words_and_holds_no_more_than_it_may: "link",
    an_accepted_manifest_allows_only_what_can_be_shown: "manifest",
    no_spelling_of_a_secret_survives_redaction: "redact",
    any_text_goes_through_sql_and_comes_back: "store",
    templates_place_secrets_where_they_are_referenced_and_nowhere_else: "template",
    the_url_that_is_judged_is_the_url_that_is_connected_to: "urls",
}
