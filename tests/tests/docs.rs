//! Checks the Markdown pages: relative links lead to an existing file and heading, and ARCHITECTURE.md names every
//! folder and every top-level source file of the workspace members. Lines of pages and sources are not too long.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The members of the workspace.
const MEMBERS: [&str; 5] = ["lb-common", "lb-ebpf", "lb-userspace", "tests", "xtask"];

/// Folders of a member whose Rust files are named one by one; of all other folders, only the folder is named.
const TOP_LEVEL: [&str; 5] = ["", "src", "src/bin", "tests", "benches"];

#[test]
fn relative_links_resolve() {
    let mut broken = Vec::new();
    let pages = pages(&root());
    assert!(pages.len() > 20, "only {} pages", pages.len());
    for page in &pages {
        for link in links(&read(page)) {
            if let Err(why) = resolve(page, &link) {
                broken.push(format!("{}: [..]({link}): {why}", shown(page)));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn architecture_names_every_folder_and_top_level_file() {
    let page = read(&root().join("ARCHITECTURE.md"));
    let mut missing = Vec::new();
    for member in MEMBERS {
        let heading = format!("\n## `{member}`\n");
        let (_, rest) = page.split_once(&heading).unwrap_or_else(|| panic!("no section {heading}"));
        let section = rest.split("\n## ").next().unwrap_or_default();
        let named = |path: &str| {
            [path, path.trim_start_matches("src/")].iter().any(|name| section.contains(&format!("`{name}`")))
        };
        let paths = paths(&root().join(member));
        assert!(paths.len() > 5, "only {paths:?} in {member}");
        missing.extend(paths.into_iter().filter(|path| !named(path)).map(|path| format!("{member}/{path}")));
    }
    assert!(
        missing.is_empty(),
        "ARCHITECTURE.md does not name these in their member's section: {missing:#?}"
    );
}

/// The other direction: after a rename, the page does not contain the former name.
#[test]
fn architecture_names_nothing_that_is_gone() {
    let page = read(&root().join("ARCHITECTURE.md"));
    let mut gone = Vec::new();
    let mut members = BTreeSet::new();
    for section in page.split("\n## ") {
        let title = section.lines().next().unwrap_or_default();
        let member = MEMBERS.into_iter().find(|member| title == format!("`{member}`"));
        members.extend(member);
        let there = everything(&root().join(member.unwrap_or_default()));
        let code = outside_fences(section).flat_map(|line| line.split('`').skip(1).step_by(2));
        let names = code.filter(|name| name.ends_with(".rs") || name.ends_with('/'));
        let exists = |name: &str| there.iter().any(|path| path.ends_with(&format!("/{name}")));
        gone.extend(names.filter(|name| !exists(name)).map(|name| format!("`{name}`, in {title}")));
    }
    assert_eq!(members, MEMBERS.into());
    assert!(gone.is_empty(), "ARCHITECTURE.md names what does not exist: {gone:#?}");
}

/// Sources and prose have at most 120 columns. Tables and commands are longer: they cannot be broken.
#[test]
fn lines_have_at_most_120_columns() {
    let root = root();
    let mut long = Vec::new();
    let mut read_lines = 0;
    for file in everything(&root).into_iter().map(|path| root.join(&path[1..])) {
        let text = match file.extension().and_then(|extension| extension.to_str()) {
            Some("rs") => read(&file),
            Some("md") => {
                let text = read(&file);
                outside_fences(&text).filter(|line| !line.starts_with('|')).collect::<Vec<_>>().join("\n")
            }
            _ => continue,
        };
        read_lines += text.lines().count();
        let lines = text.lines().filter(|line| line.chars().count() > 120);
        long.extend(lines.map(|line| format!("{}: {line}", shown(&file))));
    }
    assert!(read_lines > 50_000, "only {read_lines} lines");
    assert!(long.is_empty(), "longer than 120 columns:\n{}", long.join("\n"));
}

/// All files and, with a slash at the end, folders below a folder, each after a slash.
fn everything(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in entries(folder) {
        let name = format!("/{}", entry.file_name().and_then(|name| name.to_str()).expect("UTF-8"));
        if entry.is_dir() {
            found.extend(everything(&entry).into_iter().map(|below| format!("{name}{below}")));
            found.push(format!("{name}/"));
        } else {
            found.push(name);
        }
    }
    found
}

/// The paths that the section of a member must name: its folders, with a slash at the end, and its top-level Rust
/// files. `src` and `tests` themselves are implied by their content.
fn paths(member: &Path) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let name = folder.to_str().expect("UTF-8").to_owned();
        // The folder of the corpus stands for the folders and inputs in it.
        if name == "fuzz/corpus" {
            continue;
        }
        for entry in entries(&member.join(&folder)) {
            let below = folder.join(entry.file_name().expect("a name"));
            let path = below.to_str().expect("UTF-8").to_owned();
            if entry.is_dir() {
                if !["src", "tests"].contains(&path.as_str()) {
                    paths.insert(format!("{path}/"));
                }
                folders.push(below);
            } else if TOP_LEVEL.contains(&name.as_str()) && path.ends_with(".rs") {
                // A program is named by its file alone, because `src/bin/` is named, too.
                paths.insert(path.trim_start_matches("src/bin/").to_owned());
            }
        }
    }
    paths
}

/// The pages of the repository.
fn pages(folder: &Path) -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for entry in entries(folder) {
        if entry.is_dir() {
            pages.extend(self::pages(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "md") {
            pages.push(entry);
        }
    }
    pages
}

/// The files and folders in a folder, without hidden ones and build output.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let is_source = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        !name.starts_with('.') && !["target", "artifacts", "coverage"].contains(&name)
    };
    let mut paths: Vec<_> = paths.filter(is_source).collect();
    paths.sort();
    paths
}

/// The targets of a page's links, outside of code.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    for line in outside_fences(text) {
        let mut rest = without_code(line);
        while let Some((_, after)) = rest.split_once("](") {
            let (target, after) = after.split_once(')').expect("a link ends in its line");
            links.push(target.to_owned());
            rest = after.to_owned();
        }
    }
    links.retain(|link| !link.contains("://") && !link.starts_with("mailto:"));
    links
}

fn resolve(page: &Path, link: &str) -> Result<(), String> {
    let (path, heading) = link.split_once('#').map_or((link, None), |(path, heading)| (path, Some(heading)));
    let target = match path {
        "" => page.to_owned(),
        path => page.parent().expect("a page is in a folder").join(path),
    };
    if !target.exists() {
        return Err("there is no such file".to_owned());
    }
    let Some(heading) = heading else { return Ok(()) };
    let text = read(&target);
    let anchors: BTreeSet<_> = outside_fences(&text)
        .filter(|line| line.starts_with('#'))
        .map(|line| anchor(line.trim_start_matches('#').trim()))
        .collect();
    if anchors.contains(heading) { Ok(()) } else { Err(format!("no heading among {anchors:?}")) }
}

/// The anchor of a heading, as GitHub generates it.
fn anchor(heading: &str) -> String {
    let text = heading.to_lowercase().replace(' ', "-");
    text.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
}

/// The lines outside of fenced code blocks.
fn outside_fences(text: &str) -> impl Iterator<Item = &str> {
    let mut in_fence = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_fence ^= is_fence;
        !in_fence && !is_fence
    })
}

/// A line without the text between backticks.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

#[test]
fn anchors_are_those_of_github() {
    for (heading, expected) in [
        ("A first deployment, on one host", "a-first-deployment-on-one-host"),
        ("`ipip` and `gue`", "ipip-and-gue"),
        ("`tollgate check`", "tollgate-check"),
        ("Decapsulate on a backend: `tollgate decap`", "decapsulate-on-a-backend-tollgate-decap"),
        ("`unsafe`", "unsafe"),
    ] {
        assert_eq!(anchor(heading), expected);
    }
}

#[test]
fn links_are_found_outside_of_code() {
    let text = "see [a](b.md#c), `[no](d)` and [`e`](f.md)\n```\n[no](g)\n```\n[h](https://i)\n[j](#k)\n";
    assert_eq!(links(text), ["b.md#c", "f.md", "#k"]);
}
