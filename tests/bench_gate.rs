//! When the gate of the benches fails (`host/benches/gate`); what it measures, it measures itself.

#[path = "../host/benches/gate/recorded.rs"]
mod recorded;

use recorded::{EXCHANGE_PATH, FRESH, Figure, PIPELINE, Recorded, WRITER, WRITER_PATH, compare, read, write};

const ALL: [&Figure; 5] = [&PIPELINE, &WRITER, &FRESH, &WRITER_PATH, &EXCHANGE_PATH];

fn of(figure: &Figure, value: f64) -> Recorded {
    [(figure.name.to_owned(), value)].into()
}

#[test]
fn a_ratio_may_lose_a_quarter_and_gain_anything() {
    let recorded = of(&PIPELINE, 0.4);
    for fine in [0.4, 0.301, 0.9] {
        compare(&PIPELINE, &recorded, fine).expect("allowed");
    }
    for (bad, word) in [(0.299, "0.299"), (0.0, "0.000"), (f64::NAN, "NaN")] {
        let said = compare(&PIPELINE, &recorded, bad).expect_err("too low");
        assert!(said.starts_with(&format!("pipeline_ratio is {word}, recorded is 0.400")), "{said}");
        assert!(said.contains("at least 0.300") && said.contains("make bench"), "{said}");
        assert!(said.contains("docs/performance.md"), "{said}");
    }
}

#[test]
fn a_count_may_gain_a_tenth_and_lose_anything() {
    let recorded = of(&WRITER_PATH, 100_000.0);
    for fine in [100_000.0, 109_999.0, 20_000.0] {
        compare(&WRITER_PATH, &recorded, fine).expect("allowed");
    }
    for bad in [110_002.0, f64::NAN] {
        let said = compare(&WRITER_PATH, &recorded, bad).expect_err("too many");
        assert!(said.contains("recorded is 100000, allowed: at most 110000"), "{said}");
        assert!(said.contains("callgrind_annotate"), "{said}");
    }
}

#[test]
fn what_was_never_recorded_fails_and_says_how_it_is() {
    let recorded = of(&PIPELINE, 0.4);
    let said = compare(&WRITER, &recorded, 0.5).expect_err("there is nothing to compare with");
    assert_eq!(said, "nothing is recorded for writer_ratio; hint: make bench-record");
}

#[test]
fn a_record_reads_as_it_was_written_and_says_how_each_figure_was_measured() {
    let text = write(&[(&FRESH, 0.812_34), (&EXCHANGE_PATH, 41_234.6)]);
    let recorded = read(&text).expect("it reads");
    assert_eq!(
        recorded,
        [("exchange_instructions".to_owned(), 41_235.0), ("fresh_ratio".to_owned(), 0.812)].into()
    );
    assert!(text.contains(FRESH.how) && text.contains(EXCHANGE_PATH.how));
}

#[test]
fn a_damaged_record_is_refused_and_no_number_of_it_is_taken() {
    for (text, word) in [
        ("[]", "invalid type"),
        (r#"{"pipeline_ratio": 0.4}"#, "pipeline_ratio"),
        (r#"{"pipeline_ratio": {"recorded": "0.4"}}"#, "pipeline_ratio"),
        (r#"{"pipeline_ratio": {"recorded": 0}}"#, "pipeline_ratio"),
        (r#"{"pipeline_ratio": {"recorded": -1}}"#, "pipeline_ratio"),
    ] {
        let said = read(text).expect_err("no record");
        assert!(said.contains(word), "{text}: {said}");
    }
}

#[test]
fn the_repositorys_record_has_figures_that_exist_and_nothing_else() {
    let recorded = read(include_str!("../host/benches/gate/recorded.json")).expect("a record");
    for name in recorded.keys() {
        assert!(ALL.iter().any(|figure| figure.name == name), "nobody measures {name}");
    }
}
