//! Names of the operations of a graph file: under scopes, and each once.

use std::collections::HashMap;

/// The names that were given, and the scope that the next ones are under.
#[derive(Debug, Default)]
pub struct Names {
    scope: String,
    taken: HashMap<String, usize>,
}

impl Names {
    /// What the next names are under; empty at the top.
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// Puts the next names under `scope` in the present one; gives what [`Self::leave`] wants.
    pub fn enter(&mut self, scope: &str) -> String {
        let inner = self.full(scope);
        std::mem::replace(&mut self.scope, inner)
    }

    /// Goes back to where [`Self::enter`] was called.
    pub fn leave(&mut self, outer: String) {
        self.scope = outer;
    }

    /// Under the present scope; a leading slash means from the top.
    pub fn full(&self, name: &str) -> String {
        match name.strip_prefix('/') {
            Some(absolute) => absolute.to_string(),
            None if self.scope.is_empty() => name.to_string(),
            None => format!("{}/{name}", self.scope),
        }
    }

    /// [`Self::full`]; a name that is taken gets TensorFlow's `_1`, `_2`, ...
    pub fn unique(&mut self, name: &str) -> String {
        let full = self.full(name);
        let mut candidate = full.clone();
        loop {
            let count = self.taken.entry(full.clone()).or_insert(0);
            if *count > 0 {
                candidate = format!("{full}_{count}");
            }
            *count += 1;
            if candidate == full || !self.taken.contains_key(&candidate) {
                self.taken.entry(candidate.clone()).or_insert(1);
                return candidate;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_under_their_scope_and_each_is_given_once() {
        let mut names = Names::default();
        assert_eq!([names.unique("a"), names.unique("a")], ["a", "a_1"]);
        let outer = names.enter("b");
        assert_eq!([names.unique("a"), names.unique("/a"), names.unique("/c/a")], ["b/a", "a_2", "c/a"]);
        let deeper = names.enter("d");
        assert_eq!((names.scope(), names.full("x")), ("b/d", "b/d/x".to_string()));
        names.leave(deeper);
        names.leave(outer);
        assert_eq!(names.scope(), "");
        // One that somebody else has asked for already is passed over.
        assert_eq!([names.unique("e_1"), names.unique("e"), names.unique("e")], ["e_1", "e", "e_2"]);
    }
}
