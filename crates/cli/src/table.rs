//! Text in columns.

use crate::output::Style;

/// A piece of text with its meaning.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

/// A cell.
pub(crate) fn cell(text: impl Into<String>, style: Style) -> Cell {
    Cell { text: text.into(), style }
}

/// A cell without a meaning of its own.
pub(crate) fn plain(text: impl Into<String>) -> Cell {
    cell(text, Style::Plain)
}

/// Rows of cells, each as wide as the widest of its column, two blanks between them.
#[derive(Debug)]
pub(crate) struct Table {
    indent: usize,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with a heading.
    pub(crate) fn new(indent: usize, heading: &[&str]) -> Self {
        let heading = heading.iter().map(|text| cell(*text, Style::Dim)).collect();
        Self { indent, rows: vec![heading] }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    /// The lines. When they would be longer than `width`, the first column is cut, to 8 at least.
    pub(crate) fn render(&self, width: Option<usize>, color: bool) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut widths: Vec<usize> = (0..columns)
            .map(|at| {
                let lengths = self.rows.iter().filter_map(|row| row.get(at)).map(length);
                lengths.max().unwrap_or(0)
            })
            .collect();
        let total = self.indent + widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1);
        if let (Some(width), Some(first)) = (width, widths.first_mut()) {
            let over = total.saturating_sub(width);
            *first = first.saturating_sub(over).max((*first).min(8));
        }
        self.rows.iter().map(|row| self.line(row, &widths, color)).collect()
    }

    fn line(&self, row: &[Cell], widths: &[usize], color: bool) -> String {
        let mut line = " ".repeat(self.indent);
        let mut blanks = 0;
        for (cell, width) in row.iter().zip(widths) {
            let text = shorten(&cell.text, *width);
            let pad = width - text.chars().count().min(*width);
            if !text.is_empty() {
                line.push_str(&" ".repeat(blanks));
                blanks = 0;
                line.push_str(&cell.style.paint(&text, color));
            }
            blanks += pad + 2;
        }
        line
    }
}

fn length(cell: &Cell) -> usize {
    cell.text.chars().count()
}

/// The text in at most `width` characters.
pub(crate) fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(2, &["NAME", "STATE", "NOTE"]);
        table.row(vec![plain("a-rather-long-name"), cell("good", Style::Good), plain("")]);
        table.row(vec![plain("b"), plain(""), plain("x")]);
        table
    }

    #[test]
    fn columns_line_up_and_lines_have_no_tail() {
        assert_eq!(
            table().render(None, false),
            [
                "  NAME                STATE  NOTE",
                "  a-rather-long-name  good",
                "  b                          x",
            ]
        );
    }

    #[test]
    fn the_first_column_gives_way() {
        assert_eq!(
            table().render(Some(24), false),
            ["  NAME       STATE  NOTE", "  a-rather…  good", "  b                 x"]
        );
        assert_eq!(table().render(Some(1), false)[1], "  a-rathe…  good");
    }

    #[test]
    fn colours_take_no_room() {
        let lines = table().render(None, true);
        assert_eq!(lines[1], "  a-rather-long-name  \x1b[32mgood\x1b[0m");
    }
}
