//! Text to tokens. A word runs on over dots, so that an opcode with its modifiers is one token.

#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'a> {
    /// Of the text, from 1.
    pub line: u32,
    pub text: &'a str,
}

impl Token<'_> {
    pub fn is_word(&self) -> bool {
        self.text.starts_with(is_word_character)
    }
}

fn is_word_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%' | '.')
}

/// Debug directives end with their line, not with a semicolon, and mean nothing here.
const SKIPPED_LINES: [&str; 2] = [".loc", ".file"];

pub(crate) fn tokens(text: &str) -> Result<Vec<Token<'_>>, String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            line_length(rest)
        } else if rest.starts_with("/*") {
            rest.find("*/").ok_or_else(|| format!("line {line}: comment without an end"))? + 2
        } else if first.is_whitespace() {
            first.len_utf8()
        } else if first == '"' {
            rest[1..].find('"').ok_or_else(|| format!("line {line}: string without an end"))? + 2
        } else if is_word_character(first) {
            word_length(rest)
        } else {
            first.len_utf8()
        };
        let (token, after) = rest.split_at(length);
        if SKIPPED_LINES.contains(&token) {
            rest = &rest[line_length(rest)..];
            continue;
        }
        if !first.is_whitespace() && !token.starts_with("//") && !token.starts_with("/*") {
            tokens.push(Token { line, text: token });
        }
        line += token.matches('\n').count() as u32;
        rest = after;
    }
    Ok(tokens)
}

fn line_length(text: &str) -> usize {
    text.find('\n').unwrap_or(text.len())
}

/// `::` belongs to a word (`ld.global.L1::no_allocate`), a single colon ends a label.
fn word_length(text: &str) -> usize {
    let mut length = 0;
    loop {
        length += text[length..].find(|c| !is_word_character(c)).unwrap_or(text.len() - length);
        if !text[length..].starts_with("::") {
            return length;
        }
        length += 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_their_dots_and_lines_are_counted() {
        let text = "// a\n@%p1 ld.global.L1::no_allocate.v2.f32 {%f1, _}, [%rd1+-8]; /* b\n */\n$L_1: ret;";
        let all = tokens(text).unwrap();
        let words: Vec<&str> = all.iter().map(|t| t.text).collect();
        assert_eq!(
            words,
            "@ %p1 ld.global.L1::no_allocate.v2.f32 { %f1 , _ } , [ %rd1 + - 8 ] ; $L_1 : ret ;"
                .split(' ')
                .collect::<Vec<_>>()
        );
        assert_eq!((all[0].line, all.last().unwrap().line), (2, 4));
    }
}
