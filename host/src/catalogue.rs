//! Where the files of the providers are that come with Keywheel: a folder beside the program,
//! one file for each service. A leaf: it opens none of them and decides nothing.

use std::path::{Path, PathBuf};

/// Runs template providers; not a provider itself.
pub const TEMPLATE_PROVIDER: &str = "template-provider.wasm";

/// Names the folder, where it is not beside the program.
const ENVIRONMENT: &str = "KEYWHEEL_PROVIDERS";

/// From the program's own folder: a release's, a build's, an installation's.
const PLACES: [&str; 3] = ["providers", "../providers", "../share/keywheel/providers"];

#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    #[error("this program's place is unknown")]
    Program(#[source] std::io::Error),
    #[error(
        "the providers that come with Keywheel are not in {0}; hint: KEYWHEEL_PROVIDERS names their folder, \
         and in the source folder `make plugins` builds them"
    )]
    Missing(String),
}

/// The folder of the providers that come with Keywheel.
///
/// # Errors
/// Where it was looked for in vain.
pub fn folder() -> Result<PathBuf, CatalogueError> {
    if let Some(named) = std::env::var_os(ENVIRONMENT) {
        return found(vec![PathBuf::from(named)]);
    }
    let program = std::env::current_exe().map_err(CatalogueError::Program)?;
    let beside = program.parent().unwrap_or(Path::new("/"));
    found(PLACES.map(|place| beside.join(place)).to_vec())
}

fn found(places: Vec<PathBuf>) -> Result<PathBuf, CatalogueError> {
    places.iter().find(|place| place.join(TEMPLATE_PROVIDER).is_file()).cloned().ok_or_else(|| {
        let looked: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
        CatalogueError::Missing(looked.join(" or "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_folder_with_the_files_is_taken_and_none_names_them_all() {
        let folder = tempfile::tempdir().unwrap();
        let places = vec![folder.path().join("a"), folder.path().join("b")];
        let said = found(places.clone()).unwrap_err().to_string();
        assert!(said.contains("/a or ") && said.contains("/b;"), "{said}");
        std::fs::create_dir_all(&places[1]).unwrap();
        std::fs::write(places[1].join(TEMPLATE_PROVIDER), b"").unwrap();
        assert_eq!(found(places.clone()).unwrap(), places[1]);
    }
}
