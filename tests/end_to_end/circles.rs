//! Circles of files inside a crate: those that ARCHITECTURE.md names with a reason, and no others.
//!
//! A file uses another where a path in it (`crate::`, `super::`, `self::` or a child's name) leads there.
//! Re-exports are followed to the file that defines the item. A parent that only declares or re-exports its
//! children does not use them. Test code does not count. Circles that a module closes by using what it lies
//! in are told by that outer module's file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemUse, UseTree, Visibility};

use crate::fixture::{files, repository};

type Name = Vec<String>;

/// A module of a crate: the path of its names from the root, and what stands in it.
struct Module {
    file: PathBuf,
    children: BTreeSet<String>,
    /// Names that `use` brings into it, with the paths they were written as.
    imports: BTreeMap<String, Name>,
    /// Modules whose names a `use path::*` brings into it.
    globs: Vec<Name>,
    /// Paths that its code mentions.
    mentions: BTreeSet<Name>,
    /// Single names that its code mentions.
    singles: BTreeSet<String>,
}

type Modules = BTreeMap<Name, Module>;

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|a| {
        a.path().is_ident("test")
            || (a.path().is_ident("cfg") && a.parse_args::<syn::Path>().is_ok_and(|p| p.is_ident("test")))
    })
}

/// Where the file of `mod name;` lies.
fn file_of(parent: &Path, parent_is_root: bool, name: &str, attributes: &[Attribute]) -> PathBuf {
    let folder = parent.parent().unwrap();
    for attribute in attributes.iter().filter(|a| a.path().is_ident("path")) {
        let syn::Meta::NameValue(pair) = &attribute.meta else { continue };
        let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = &pair.value else { continue };
        return folder.join(text.value());
    }
    let own = parent_is_root || parent.file_name().is_some_and(|n| n == "mod.rs");
    let folder = if own { folder.to_path_buf() } else { parent.with_extension("") };
    let flat = folder.join(format!("{name}.rs"));
    if flat.is_file() { flat } else { folder.join(name).join("mod.rs") }
}

fn read(modules: &mut Modules, name: Name, file: &Path) {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let parsed = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    read_items(modules, name, file, &parsed.items);
}

fn read_items(modules: &mut Modules, name: Name, file: &Path, items: &[Item]) {
    let mut module = Module {
        file: file.to_path_buf(),
        children: BTreeSet::new(),
        imports: BTreeMap::new(),
        globs: Vec::new(),
        mentions: BTreeSet::new(),
        singles: BTreeSet::new(),
    };
    for item in items {
        if let Item::Mod(child) = item {
            if is_test(&child.attrs) {
                continue;
            }
            module.children.insert(child.ident.to_string());
            let mut path = name.clone();
            path.push(child.ident.to_string());
            match &child.content {
                Some((_, items)) => read_items(modules, path, file, items),
                None => {
                    let next = file_of(file, name.is_empty(), &child.ident.to_string(), &child.attrs);
                    read(modules, path, &next);
                }
            }
        } else {
            module.visit_item(item);
        }
    }
    // What it hands on and also mentions, it uses.
    let used = module.imports.iter().filter(|(name, _)| module.singles.contains(*name));
    let used: Vec<Name> = used.map(|(_, path)| path.clone()).collect();
    module.mentions.extend(used);
    modules.insert(name, module);
}

impl Module {
    fn import(&mut self, before: &[String], tree: &UseTree, exported: bool) {
        let mut path = before.to_vec();
        match tree {
            UseTree::Path(part) => {
                path.push(part.ident.to_string());
                self.import(&path, &part.tree, exported);
            }
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.import(&path, tree, exported));
            }
            UseTree::Glob(_) => {
                if !exported {
                    self.mentions.insert(path.clone());
                }
                self.globs.push(path);
            }
            UseTree::Name(part) => {
                let name = part.ident.to_string();
                let known =
                    if name == "self" { path.last().cloned().unwrap_or_default() } else { name.clone() };
                if name != "self" {
                    path.push(name);
                }
                self.add(known, path, exported);
            }
            UseTree::Rename(part) => {
                path.push(part.ident.to_string());
                self.add(part.rename.to_string(), path, exported);
            }
        }
    }

    fn add(&mut self, name: String, path: Name, exported: bool) {
        // What a module only hands on is not used by it.
        if !exported {
            self.mentions.insert(path.clone());
        }
        self.imports.insert(name, path);
    }

    /// Paths in the arguments of macros, which nothing parses: names joined by `::`.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Name = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(name) => {
                    if colons != 2 {
                        self.mention(std::mem::take(&mut path));
                    }
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' => colons += 1,
                other => {
                    self.mention(std::mem::take(&mut path));
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        self.mention(path);
    }

    fn mention(&mut self, mut path: Name) {
        match path.len() {
            0 => {}
            1 => self.singles.extend(path.pop()),
            _ => {
                self.mentions.insert(path);
            }
        }
    }
}

impl<'ast> Visit<'ast> for Module {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes: &[Attribute] = match item {
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            Item::Const(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            _ => &[],
        };
        if !is_test(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.import(&[], &item.tree, !matches!(item.vis, Visibility::Inherited));
    }

    fn visit_visibility(&mut self, _: &'ast Visibility) {
        // `pub(in crate::a)` uses nothing.
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.mention(path.segments.iter().map(|s| s.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.visit_path(&item.path);
        self.tokens(item.tokens.clone());
    }
}

/// The module that defines what `path`, written in module `from`, names. `None` for another crate's.
fn definer(modules: &Modules, from: &[String], path: &[String], depth: usize) -> Option<Name> {
    let (first, mut rest) = path.split_first()?;
    let mut at: Name = match first.as_str() {
        "crate" => Vec::new(),
        "self" => from.to_vec(),
        "super" => from.split_last()?.1.to_vec(),
        child if modules[from].children.contains(child) => [from, &[child.to_owned()]].concat(),
        name => {
            // A name that a `use` brought in is counted where it is imported.
            let imported = modules[from].imports.get(name)?;
            if depth == 0 || imported.as_slice() == path || imported.first() == Some(first) {
                return None;
            }
            return definer(modules, from, &[imported.as_slice(), rest].concat(), depth - 1);
        }
    };
    while let Some((next, after)) = rest.split_first() {
        if next == "super" {
            at.pop();
        } else if modules[&at].children.contains(next) {
            at.push(next.clone());
        } else {
            break;
        }
        rest = after;
    }
    // Follow what the module only hands on.
    if let (Some(name), true) = (rest.first(), depth > 0) {
        if let Some(imported) = modules[&at].imports.get(name) {
            let longer = [imported.as_slice(), &rest[1..]].concat();
            return definer(modules, &at, &longer, depth - 1);
        }
        for glob in &modules[&at].globs {
            if let Some(module) = definer(modules, &at, glob, depth - 1)
                && module != at
                && modules[&module].imports.contains_key(name)
            {
                return definer(modules, &module, rest, depth - 1);
            }
        }
    }
    Some(at)
}

/// The files of a crate.
struct Graph {
    /// Which file uses which.
    uses: BTreeMap<PathBuf, BTreeSet<PathBuf>>,
    /// The files of the modules that a file's module lies in, the crate's root among them.
    ancestors: BTreeMap<PathBuf, BTreeSet<PathBuf>>,
}

impl Graph {
    fn read(root: &Path) -> Self {
        let mut modules = Modules::new();
        read(&mut modules, Vec::new(), root);
        let (mut uses, mut ancestors) = (BTreeMap::new(), BTreeMap::new());
        for (name, module) in &modules {
            let used: &mut BTreeSet<PathBuf> = uses.entry(module.file.clone()).or_default();
            let found = module.mentions.iter().filter_map(|path| definer(&modules, name, path, 8));
            used.extend(found.map(|name| modules[&name].file.clone()).filter(|file| *file != module.file));
            let above: &mut BTreeSet<PathBuf> = ancestors.entry(module.file.clone()).or_default();
            let files = (0..name.len()).map(|length| modules[&name[..length]].file.clone());
            above.extend(files.filter(|file| *file != module.file));
        }
        Self { uses, ancestors }
    }

    /// What each file reaches, by the arrows that `counts` lets pass.
    fn reach(&self, counts: impl Fn(&PathBuf, &PathBuf) -> bool) -> BTreeMap<&PathBuf, BTreeSet<&PathBuf>> {
        let from = |start| {
            let (mut found, mut waiting) = (BTreeSet::new(), vec![start]);
            while let Some(next) = waiting.pop() {
                for file in self.uses[next].iter().filter(|file| counts(next, file)) {
                    if found.insert(file) {
                        waiting.push(file);
                    }
                }
            }
            found
        };
        self.uses.keys().map(|file| (file, from(file))).collect()
    }

    /// Sets of files each of which reaches all the others, a module's use of what it lies in left out.
    fn circles(&self) -> BTreeSet<BTreeSet<PathBuf>> {
        let reached = self.reach(|from, to| !self.ancestors[from].contains(to));
        let circle = |file: &PathBuf| {
            let others = reached[file].iter().filter(|other| reached[**other].contains(file));
            others.map(|file| (*file).clone()).chain([file.clone()]).collect::<BTreeSet<_>>()
        };
        self.uses.keys().map(circle).filter(|circle| circle.len() > 1).collect()
    }

    /// Files of modules that use a module in them which uses them.
    fn used_from_within(&self) -> BTreeSet<PathBuf> {
        let reached = self.reach(|_, _| true);
        let back = |file: &PathBuf| {
            let used = self.uses[file].intersection(&self.ancestors[file]);
            used.filter(|above| reached[above].contains(file)).cloned().collect::<Vec<_>>()
        };
        self.uses.keys().flat_map(back).collect()
    }
}

/// Every crate's circles and modules used from within, as paths in the repository.
fn found() -> (BTreeSet<BTreeSet<String>>, BTreeSet<BTreeSet<String>>) {
    let (mut circles, mut within) = (BTreeSet::new(), BTreeSet::new());
    let name = |path: &PathBuf| path.strip_prefix(repository()).unwrap().to_str().unwrap().replace('\\', "/");
    let sources = ["crates", "xtask"].into_iter().flat_map(|folder| files(&repository().join(folder)));
    let is_root = |path: &PathBuf| {
        let in_src = path.parent().is_some_and(|p| p.ends_with("src"));
        in_src && (path.ends_with("lib.rs") || path.ends_with("main.rs"))
    };
    for root in sources.filter(is_root) {
        let graph = Graph::read(&root);
        circles.extend(graph.circles().iter().map(|circle| circle.iter().map(name).collect()));
        within.extend(graph.used_from_within().iter().map(|file| BTreeSet::from([name(file)])));
    }
    (circles, within)
}

/// The first columns of the tables under a title of ARCHITECTURE.md: the files that each row names.
fn named(title: &str) -> BTreeSet<BTreeSet<String>> {
    let text = fs::read_to_string(repository().join("ARCHITECTURE.md")).unwrap();
    let (_, section) = text.split_once(&format!("\n### {title}\n")).expect("a section of this title");
    let section = section.split("\n#").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let files = row.split('|').nth(1).unwrap();
        files.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    })
    .collect()
}

fn assert_same(what: &str, found: &BTreeSet<BTreeSet<String>>, named: &BTreeSet<BTreeSet<String>>) {
    let unknown: Vec<_> = found.difference(named).collect();
    assert!(unknown.is_empty(), "{what} that ARCHITECTURE.md does not name: {unknown:#?}");
    let gone: Vec<_> = named.difference(found).collect();
    assert!(gone.is_empty(), "{what} that ARCHITECTURE.md names, and that are none: {gone:#?}");
}

#[test]
fn circles_of_files_are_those_that_are_named() {
    let (circles, within) = found();
    assert_same("circles", &circles, &named("Circles"));
    assert_same("modules used from within", &within, &named("Modules used from within"));
}

#[test]
fn a_circle_is_seen_through_re_exports_and_macros_and_not_in_tests() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("lib.rs", "mod a; mod b; mod c; mod d; pub use b::B; mod parent; mod lender;");
    // a uses b through the root's re-export, b uses a in a macro: a circle.
    write("a.rs", "use crate::B; pub struct A(B); pub fn f() {}");
    write("b.rs", "pub struct B; pub fn g() { println!(\"{:?}\", super::a::f()) }");
    // c uses d, d uses c in a test alone: none.
    write("c.rs", "pub fn f() { crate::d::g() }");
    write("d.rs", "pub fn g() {} #[cfg(test)] mod tests { use crate::c::f; }");
    // This parent declares and re-exports, and does not use: nothing, though its child uses an item of it.
    write("parent/mod.rs", "mod child; pub use child::Child; pub struct Item;");
    write("parent/child.rs", "use super::Item; pub struct Child(Item);");
    // This one uses its child.
    write("lender/mod.rs", "mod child; pub struct Item; pub fn f() { child::g(&Item) }");
    write("lender/child.rs", "use super::Item; pub fn g(_: &Item) {}");
    let graph = Graph::read(&folder.path().join("lib.rs"));
    let circle = ["a.rs", "b.rs"].map(|name| folder.path().join(name));
    assert_eq!(graph.circles(), BTreeSet::from([BTreeSet::from(circle)]));
    assert_eq!(graph.used_from_within(), BTreeSet::from([folder.path().join("lender/mod.rs")]));
}
