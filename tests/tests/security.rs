//! Every test that docs/security.md names for an attack exists.

use std::path::Path;

#[test]
fn every_attack_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (tests, units) = (root.join("tests"), root.join("../lb-userspace/src"));
    let page = include_str!("../../docs/security.md");
    let (_, table) = page.split_once("## Attack, defence, test").expect("the page has its table");
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 20, "only {} attacks", rows.len());
    for row in rows {
        let shown_by = row.trim_end_matches(" |").rsplit(" | ").next().expect("three columns");
        let names: Vec<_> = shown_by.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test shows this:\n{row}");
        for name in names {
            let (file, test) =
                name.rsplit_once("::").unwrap_or_else(|| panic!("`{name}` names no test:\n{row}"));
            let file = if file.contains('/') || file == "corpus" {
                file.to_owned()
            } else {
                format!("program/{file}")
            };
            let file = format!("{}.rs", file.replace("::", "/"));
            let path = file.strip_prefix("unit/").map_or_else(|| tests.join(&file), |file| units.join(file));
            let text = std::fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("{}: {error}, for:\n{row}", path.display()));
            // A function, or a row of `case_groups`.
            let declared =
                [format!("fn {test}("), format!("    {test}: \"")].iter().any(|it| text.contains(it));
            assert!(declared, "there is no test {name}, for:\n{row}");
        }
    }
}
