//! Completion scripts, from the same description the parser uses.

use clap::CommandFactory;
use clap_complete::Shell;

use super::output::Output;

pub fn print(shell: Shell, output: Output) {
    output.line(script(shell).trim_end());
}

/// Made whole before it is printed: the generator panics where its reader goes away.
fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut super::Arguments::command(), "keywheel", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_shell_has_a_script_that_knows_the_commands() {
        for shell in Shell::value_variants() {
            let script = script(*shell);
            assert!(script.contains("credential") && script.contains("reports"), "{shell}");
        }
    }
}
