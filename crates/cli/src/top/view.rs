//! What is on the screen, and what keys do to it.

use super::figures::{Figures, Row};
use super::terminal::Key;
use crate::args::Sort;

/// Names are not longer.
const LONGEST_FILTER: usize = 64;

/// What is shown, and how.
#[derive(Debug)]
pub(super) struct View {
    pub(super) figures: Figures,
    /// Why there are no newer figures.
    pub(super) error: Option<String>,
    pub(super) sort: Sort,
    pub(super) filter: String,
    /// The filter is being typed.
    pub(super) editing: bool,
    pub(super) paused: bool,
    pub(super) help: bool,
    /// The resource that is selected, and whether it is opened.
    pub(super) selected: Option<String>,
    open: bool,
}

/// What a key led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// The screen may be another.
    Draw,
    /// The end.
    Quit,
}

impl View {
    pub(super) fn new(sort: Sort) -> Self {
        Self {
            figures: Figures::default(),
            error: None,
            sort,
            filter: String::new(),
            editing: false,
            paused: false,
            help: false,
            selected: None,
            open: false,
        }
    }

    /// Takes newer figures.
    pub(super) fn take(&mut self, figures: Figures) {
        self.error = None;
        self.figures = figures;
        self.figures.sort(self.sort);
        self.settle();
    }

    /// What is selected must be there.
    fn settle(&mut self) {
        let names: Vec<&str> = self.rows().iter().map(|row| &*row.name).collect();
        let is_there = self.selected.as_deref().is_some_and(|name| names.contains(&name));
        if !is_there {
            let first = names.first().map(|name| (*name).to_owned());
            self.open = false;
            self.selected = first;
        }
    }

    /// The rows that the filter leaves.
    pub(super) fn rows(&self) -> Vec<&Row> {
        let fits = |row: &&Row| row.name.contains(&self.filter);
        self.figures.resources.iter().filter(fits).collect()
    }

    /// The resource of which the details are shown.
    pub(super) fn opened(&self) -> Option<&Row> {
        let rows = self.rows();
        let selected = |row: &&&Row| self.selected.as_ref() == Some(&row.name);
        rows.iter().find(selected).copied().filter(|_| self.open)
    }

    /// What a key does. `page` is how far the keys for pages go.
    pub(super) fn key(&mut self, key: Key, page: usize) -> Outcome {
        if key == Key::Interrupt {
            return Outcome::Quit;
        }
        if self.editing {
            self.edit(key);
            self.settle();
            return Outcome::Draw;
        }
        match key {
            Key::Char('q') => return Outcome::Quit,
            Key::Escape | Key::Backspace => {
                if self.help {
                    self.help = false;
                } else if self.open {
                    self.open = false;
                } else {
                    self.filter.clear();
                }
            }
            Key::Char('h' | '?') => self.help = !self.help,
            Key::Char(' ') => self.paused = !self.paused,
            Key::Char('s') => {
                self.sort = next(self.sort);
                self.figures.sort(self.sort);
            }
            Key::Char('/') => {
                (self.editing, self.help, self.open) = (true, false, false);
            }
            Key::Enter => self.open = !self.help && self.selected.is_some(),
            Key::Up | Key::Char('k') => self.go(-1),
            Key::Down | Key::Char('j') => self.go(1),
            Key::PageUp => self.go(-distance(page)),
            Key::PageDown => self.go(distance(page)),
            Key::Home => self.go(isize::MIN),
            Key::End => self.go(isize::MAX),
            Key::Char(_) | Key::Interrupt => {}
        }
        self.settle();
        Outcome::Draw
    }

    fn edit(&mut self, key: Key) {
        match key {
            Key::Enter => self.editing = false,
            Key::Escape => {
                self.editing = false;
                self.filter.clear();
            }
            Key::Backspace => {
                self.filter.pop();
            }
            Key::Char(c) if self.filter.len() < LONGEST_FILTER => self.filter.push(c),
            _ => {}
        }
    }

    /// Selects another row, as far as there are any.
    fn go(&mut self, by: isize) {
        let names: Vec<String> = self.rows().iter().map(|row| row.name.clone()).collect();
        let at = names.iter().position(|name| self.selected.as_ref() == Some(name)).unwrap_or(0);
        let to = at.saturating_add_signed(by).min(names.len().saturating_sub(1));
        self.selected = names.into_iter().nth(to);
    }
}

fn distance(page: usize) -> isize {
    isize::try_from(page.max(1)).unwrap_or(isize::MAX)
}

const fn next(sort: Sort) -> Sort {
    match sort {
        Sort::Name => Sort::Iops,
        Sort::Iops => Sort::Throughput,
        Sort::Throughput => Sort::Latency,
        Sort::Latency => Sort::Behind,
        Sort::Behind => Sort::Name,
    }
}
