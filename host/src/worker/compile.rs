//! The compiler process: reads one plugin file, says what it is, writes native code. It lives
//! for one file, with bounded memory and time, and nothing it is given is trusted.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{FromRawFd, RawFd};
use std::process::ExitCode;

use wasmparser::{ComponentExternalKind, Encoding, Parser, Payload};

use super::sandbox::Sandbox;
use super::{CODE_FD, OUTPUT_FD, SOCKET_FD, engine, read_message, write_message};
use crate::limits;
use crate::protocol::{ABI_VERSIONS, CompileAnswer, Confinement, Kind, Layer};

const PACKAGE: &str = "keywheel:provider/";
const IMPORTS: [&str; 4] = ["types", "http", "log", "secrets"];

/// Compiles the file on `CODE_FD` into the one on `OUTPUT_FD` and answers on the socket, where
/// the host first says what sandbox it wants.
pub fn run() -> ExitCode {
    // SAFETY: the parent placed these three descriptors and nothing else here owns them.
    let (mut socket, input, output) =
        unsafe { (File::from_raw_fd(SOCKET_FD), File::from_raw_fd(CODE_FD), File::from_raw_fd(OUTPUT_FD)) };
    let Ok(Some(confinement)) = read_message(&mut socket) else { return ExitCode::FAILURE };
    let answer = match compile(input, output, confinement) {
        Ok(answer) => answer,
        Err(why) => CompileAnswer::Refused(why),
    };
    match write_message(&mut socket, &answer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Goes through every layer in its order; see `super::confine`.
pub fn confine(
    confinement: Confinement,
    last: RawFd,
    filtered: bool,
) -> Result<(wasmtime::Engine, Vec<Layer>), String> {
    let mut sandbox = Sandbox::enter(confinement, last);
    // Installs wasmtime's signal handlers, which no system call may change later.
    let engine = engine::compiling().map_err(|error| format!("no compiler: {error:#}"))?;
    // Native code is at most a few times the size of its source.
    sandbox.bound(limits::COMPILE_ADDRESS_SPACE, limits::PLUGIN_BYTES * 8, Some(limits::COMPILE_CPU));
    sandbox.leave_files();
    if filtered {
        sandbox.filter_calls(Kind::Compiler);
    }
    Ok((engine, sandbox.finish()?))
}

fn compile(mut input: File, mut output: File, confinement: Confinement) -> Result<CompileAnswer, String> {
    let (engine, _) = confine(confinement, OUTPUT_FD, true)?;
    let mut bytes = Vec::new();
    input
        .rewind()
        .and_then(|()| input.read_to_end(&mut bytes))
        .map_err(|error| format!("can't be read: {error}"))?;
    let imports = inspect(&bytes)?;
    let native =
        engine.precompile_component(&bytes).map_err(|error| format!("doesn't compile: {error:#}"))?;
    output.write_all(&native).map_err(|error| format!("native code can't be written: {error}"))?;
    Ok(CompileAnswer::Compiled { bytes: native.len() as u64, imports })
}

/// What kind of file this is, judged by its outermost level: the imports if it is a plugin of
/// a version we know.
pub fn inspect(bytes: &[u8]) -> Result<Vec<String>, String> {
    if bytes.is_empty() {
        return Err("the file is empty; it may still be copied".into());
    }
    if !bytes.starts_with(b"\0asm") {
        let shown: String = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        return Err(format!(
            "not WebAssembly: the file starts with {shown}, a plugin with 0061736d; hint: build it with `cargo build --release --target wasm32-wasip2`"
        ));
    }
    let (mut imports, mut exports, mut depth) = (Vec::new(), Vec::new(), 0_usize);
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(|error| {
            format!("damaged or cut short at byte {} of {}: {}", error.offset(), bytes.len(), error.message())
        })?;
        match payload {
            Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => {
                return Err(
                    "a core module, not a component; hint: build it with `cargo build --release --target wasm32-wasip2`, \
                     or turn it into a component with `wasm-tools component new`"
                        .into(),
                );
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    let import = import.map_err(|error| format!("damaged import: {}", error.message()))?;
                    imports.push(import.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    let export = export.map_err(|error| format!("damaged export: {}", error.message()))?;
                    if export.kind == ComponentExternalKind::Instance {
                        exports.push(export.name.name.to_owned());
                    }
                }
            }
            _ => {}
        }
    }
    check_names(&imports, &exports)?;
    Ok(imports)
}

/// Versions, missing exports and foreign imports, each with what was found and what is known.
fn check_names(imports: &[String], exports: &[String]) -> Result<(), String> {
    let known = ABI_VERSIONS.join(", ");
    for name in imports.iter().chain(exports) {
        if let Some((_, version)) = name.strip_prefix(PACKAGE).and_then(|rest| rest.split_once('@'))
            && !ABI_VERSIONS.contains(&version)
        {
            return Err(format!(
                "built for contract version {version}, and this host knows {known}; hint: rebuild the plugin with the SDK of this release, or update Keywheel"
            ));
        }
    }
    for name in imports {
        let ours = name
            .strip_prefix(PACKAGE)
            .and_then(|rest| rest.split_once('@'))
            .is_some_and(|(interface, _)| IMPORTS.contains(&interface));
        if name.starts_with("wasi:") && !name.contains("@0.2.") {
            return Err(format!(
                "imports `{name}`, and this host links WASI 0.2 alone, empty; hint: build it for wasm32-wasip2"
            ));
        }
        if !ours && !name.starts_with("wasi:") {
            return Err(format!(
                "imports `{name}`, which no host offers; allowed are {PACKAGE}{{{}}}@{known} and WASI 0.2, which is linked empty",
                IMPORTS.join(",")
            ));
        }
    }
    let guest = format!("{PACKAGE}guest@");
    if !exports.iter().any(|name| name.starts_with(&guest)) {
        let found = if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") };
        return Err(format!(
            "lacks the export {guest}{}, it exports {found}; hint: `keywheel_sdk::export!(MyProvider);` is missing",
            ABI_VERSIONS[ABI_VERSIONS.len() - 1]
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_text_file_is_refused_with_what_it_starts_with() {
        let error = inspect(b"#!/bin/sh").unwrap_err();
        assert!(error.contains("not WebAssembly") && error.contains("2321"), "{error}");
    }

    #[test]
    fn a_core_module_is_told_from_a_component() {
        let error = inspect(b"\0asm\x01\0\0\0").unwrap_err();
        assert!(error.contains("core module"), "{error}");
    }

    #[test]
    fn a_truncated_component_is_damaged() {
        let error = inspect(b"\0asm\x0d\0\x01\0\x01\xff\x7f").unwrap_err();
        assert!(error.contains("cut short"), "{error}");
    }

    #[test]
    fn an_unknown_contract_version_is_named_beside_the_known_ones() {
        let error = check_names(&[], &names(&["keywheel:provider/guest@0.9.0"])).unwrap_err();
        assert!(error.contains("0.9.0") && error.contains("0.1.0"), "{error}");
    }

    #[test]
    fn a_missing_export_is_named() {
        let error = check_names(&names(&["keywheel:provider/http@0.1.0"]), &[]).unwrap_err();
        assert!(error.contains("keywheel:provider/guest@0.1.0"), "{error}");
    }

    #[test]
    fn an_import_outside_the_contract_is_named() {
        let error =
            check_names(&names(&["evil:host/exec@1.0.0"]), &names(&["keywheel:provider/guest@0.1.0"]))
                .unwrap_err();
        assert!(error.contains("evil:host/exec@1.0.0"), "{error}");
    }
}
