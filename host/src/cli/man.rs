//! Manual pages, one for each command, from the same description the parser uses.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use serde_json::json;

use super::Failure;
use super::output::Output;
use crate::config::write_atomically;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The folder to write them into, such as ~/.local/share/man/man1; it is made if need be
    folder: PathBuf,
}

pub fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let folder = &arguments.folder;
    fs::create_dir_all(folder).map_err(Failure::io(format!("{} can't be made", folder.display())))?;
    let pages = pages().map_err(Failure::io("a page can't be written"))?;
    for (name, page) in &pages {
        let path = folder.join(name);
        write_atomically(&path, page)
            .and_then(|()| open_to_all(&path))
            .map_err(Failure::io(format!("{} can't be written", path.display())))?;
    }
    let names: Vec<_> = pages.iter().map(|(name, _)| name).collect();
    output.value(&json!({ "folder": folder, "pages": names }), || {
        format!("{} pages in {}", pages.len(), folder.display())
    });
    Ok(())
}

/// A manual is no secret.
fn open_to_all(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

/// Every page with its file's name.
fn pages() -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut command = super::Arguments::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    collect(&command, "keywheel", &mut pages)?;
    Ok(pages)
}

fn collect(command: &Command, name: &str, pages: &mut Vec<(String, Vec<u8>)>) -> std::io::Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title(name)
        .manual("Keywheel")
        .source(env!("CARGO_PKG_VERSION"))
        .render(&mut page)?;
    pages.push((format!("{name}.1"), page));
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        collect(below, &format!("{name}-{}", below.get_name()), pages)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_that_names_it_and_its_options() {
        let pages = pages().unwrap();
        let page = |name: &str| {
            let found = pages.iter().find(|(file, _)| file == name).unwrap_or_else(|| panic!("no {name}"));
            String::from_utf8(found.1.clone()).unwrap()
        };
        assert!(page("keywheel.1").contains("keywheel\\-serve(1)"), "{}", page("keywheel.1"));
        assert!(page("keywheel-serve.1").contains("log\\-json"));
        assert!(page("keywheel-credential-add.1").contains("rotate\\-every"));
        assert!(pages.iter().all(|(_, page)| page.starts_with(b".ie")), "roff begins so");
    }
}
