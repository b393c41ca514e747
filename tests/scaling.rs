//! docs/scaling.md: its tables are what its simulation prints.

use std::process::Stdio;

use crate::harness::*;

#[test]
fn the_tables_of_the_page_on_scaling_are_what_its_simulation_prints() {
    let output = command("python3")
        .arg(source("docs/scaling/simulate.py"))
        .stdin(Stdio::null())
        .output()
        .expect("python3 starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    let page = std::fs::read_to_string(source("docs/scaling.md")).expect("the page");
    let tables: Vec<&str> = printed.split("\n\n").map(str::trim).filter(|part| !part.is_empty()).collect();
    // A title and a table each.
    assert!(tables.len() >= 10, "{printed}");
    for table in tables {
        assert!(page.contains(table), "this is not on the page:\n{table}");
    }
}
