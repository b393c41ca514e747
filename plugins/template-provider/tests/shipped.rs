//! What holds for every template that comes with Keywheel: it is accepted, it says where its facts
//! are from, and it has its page and its fixtures. What a template makes of an answer is its
//! fixtures' matter, which `keywheel plugin test` runs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use keywheel_sdk::Provider as _;
use keywheel_sdk::manifest::{CommitClass, Manifest};
use template_provider::TemplateProvider;
use template_provider::fault;
use template_provider::slot;
use template_provider::template::{Kind, Template};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The names in a folder, without their ending.
fn names(folder: &Path, ending: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().map_or("", |ending| ending.to_str().expect("UTF-8")) == ending)
        .map(|path| path.file_stem().expect("a name").to_str().expect("UTF-8").to_owned())
        .collect()
}

fn services() -> BTreeSet<String> {
    names(&folder("providers"), "toml")
}

fn text(service: &str) -> String {
    fs::read_to_string(folder("providers").join(format!("{service}.toml"))).expect("the template")
}

fn described(service: &str) -> Manifest {
    let manifest = slot::with(&text(service), TemplateProvider::describe);
    let refused = manifest.extras.iter().find(|(name, _)| name == "refused");
    assert_eq!(refused, None, "{service}.toml");
    manifest
}

fn read(service: &str) -> Template {
    fault::read(&text(service)).unwrap_or_else(|_| panic!("{service}.toml is no template"))
}

type Fixture = DeValue<'static>;

/// A service's fixtures, with their names.
fn fixtures(service: &str) -> Vec<(String, Fixture)> {
    let folder = folder("fixtures").join(service);
    let read = |name: String| {
        let text = fs::read_to_string(folder.join(format!("{name}.toml"))).expect("a fixture");
        // The values borrow from it, and a test's process is short.
        let table = DeTable::parse(text.leak()).unwrap_or_else(|error| panic!("{service}/{name}: {error}"));
        (name, DeValue::Table(table.into_inner()))
    };
    names(&folder, "toml").into_iter().map(read).collect()
}

fn at<'v>(fixture: &'v Fixture, path: &[&str]) -> Option<&'v str> {
    path.iter().try_fold(fixture, |value, name| value.get(*name).map(Spanned::get_ref))?.as_str()
}

fn is_link(text: &str) -> bool {
    text.strip_prefix("https://").is_some_and(|rest| rest.contains('/') && !rest.contains(' '))
}

#[test]
fn every_template_is_accepted_and_named_after_its_service() {
    for service in services() {
        assert_eq!(described(&service).service, service);
    }
}

#[test]
fn every_template_says_where_its_facts_are_from() {
    for service in services() {
        let template = read(&service);
        assert!(is_link(&template.source), "{service}: source is `{}`", template.source.value);
        for (name, method) in template.rotate.iter() {
            let source = &method.class_source.value;
            assert!(is_link(source), "{service}, {}: class_source is `{source}`", name.value);
        }
    }
}

#[test]
fn every_template_has_a_page_that_says_how_to_add_a_credential() {
    for service in services() {
        let page = folder("../../docs/providers").join(format!("{service}.md"));
        let page = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        assert!(page.starts_with(&format!("# {service}: ")), "{service}: the page's title");
        assert!(page.contains(&format!("--service {service}")), "{service}: the page adds a credential");
        let template = read(&service);
        for name in template.keys.names().chain(template.settings.names()) {
            assert!(page.contains(&format!("`{name}`")), "{service}: the page says nothing of `{name}`");
        }
        for (_, method) in template.rotate.iter() {
            let class = &described(&service).methods[0].commit_class;
            let named = CommitClass::NAMES.iter().any(|name| page.contains(&format!("`{name}`")));
            assert!(named, "{service}: the page names the class, {class:?}");
            let source = &method.class_source.value;
            assert!(page.contains(source.as_str()), "{service}: the page links {source}");
        }
    }
}

#[test]
fn every_template_has_the_fixtures_that_a_provider_needs() {
    for service in services() {
        let fixtures = fixtures(&service);
        let has = |what: &str, wanted: &dyn Fn(&Fixture) -> bool| {
            assert!(fixtures.iter().any(|(_, fixture)| wanted(fixture)), "{service}: no fixture is {what}");
        };
        has("alive", &|fixture| at(fixture, &["expect", "verdict"]) == Some("valid"));
        has("made up and invalid", &|fixture| {
            let made_up = fixture.get("made_up").and_then(|value| value.get_ref().as_bool()) == Some(true);
            made_up && at(fixture, &["expect", "verdict"]) == Some("invalid")
        });
        for name in read(&service).rotate.names() {
            let of = |fixture: &Fixture| {
                at(fixture, &["call"]) == Some("rotate")
                    && at(fixture, &["method"]).is_none_or(|method| method == name)
            };
            has("a rotation", &|fixture| {
                of(fixture) && matches!(at(fixture, &["expect", "outcome"]), Some("rotated" | "unchanged"))
            });
            has("a refusal", &|fixture| {
                of(fixture) && at(fixture, &["expect", "outcome"]) == Some("invalid")
            });
        }
    }
}

#[test]
fn every_fixture_says_where_its_answer_is_documented() {
    for service in services() {
        for (name, fixture) in fixtures(&service) {
            let source = at(&fixture, &["source"]).unwrap_or_default();
            assert!(is_link(source) || source.starts_with("recorded "), "{service}/{name}: `{source}`");
        }
    }
}

#[test]
fn no_fixtures_are_left_of_a_template_that_is_gone() {
    assert_eq!(names(&folder("fixtures"), ""), services());
}

#[test]
fn those_that_rotate_show_three_classes_and_some_take_a_server_of_ones_own() {
    let all: Vec<_> = services().iter().map(|service| described(service)).collect();
    let rotating: Vec<_> = all.iter().filter(|manifest| !manifest.methods.is_empty()).collect();
    let classes: BTreeSet<String> = rotating
        .iter()
        .flat_map(|manifest| &manifest.methods)
        .map(|method| format!("{:?}", method.commit_class))
        .collect();
    let required = |service: &String| {
        read(service).settings.iter().any(|(_, setting)| setting.required && setting.kind == Kind::Url)
    };
    assert!(all.len() >= 18, "{} templates", all.len());
    assert!(rotating.len() >= 5, "{} rotate", rotating.len());
    assert!(classes.len() >= 3, "{classes:?}");
    assert!(services().iter().filter(|service| required(service)).count() >= 4);
}
