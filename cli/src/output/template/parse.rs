//! Text to nodes.

use serde_json::Value;

use super::{Expression, Node};

/// Deeper templates are refused: nobody writes them by hand and each level costs stack.
const MAX_DEPTH: usize = 64;

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Open,
    Close,
    Pipe,
    Comma,
    Assign,
    Field {
        from_top: bool,
        path: Vec<String>,
    },
    /// `.A` right after a closing parenthesis.
    Suffix(Vec<String>),
    Variable(String),
    Word(String),
    Literal(Value),
}

enum Piece {
    Text(String),
    Action(Vec<Token>),
}

pub(super) fn parse(text: &str) -> Result<Vec<Node>, String> {
    let mut pieces = split(text)?.into_iter();
    let (nodes, end) = block(&mut pieces, 0)?;
    match end {
        BlockEnd::Text => Ok(nodes),
        BlockEnd::End => Err("template: \"end\" without a block".to_owned()),
        BlockEnd::Else(_) => Err("template: \"else\" without a block".to_owned()),
    }
}

/// Cuts the template into text and actions, and applies `{{-` and `-}}`.
fn split(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim_next = false;
    loop {
        let start = rest.find("{{");
        let mut plain = &rest[..start.unwrap_or(rest.len())];
        let mut action = start.map(|start| &rest[start + 2..]);
        if trim_next {
            plain = plain.trim_start();
        }
        if let Some(inner) = action.and_then(|action| action.strip_prefix('-'))
            && inner.starts_with(char::is_whitespace)
        {
            plain = plain.trim_end();
            action = Some(inner);
        }
        if !plain.is_empty() {
            pieces.push(Piece::Text(unescape(plain)));
        }
        let Some(action) = action else { return Ok(pieces) };
        if let Some(comment) = action.trim_start().strip_prefix("/*") {
            let (_, after) = comment.split_once("*/").ok_or("template: a comment is not closed by \"*/\"")?;
            rest = after.trim_start().trim_start_matches('-').strip_prefix("}}").ok_or_else(unclosed)?;
            trim_next = false;
            continue;
        }
        let (mut inner, after) = cut_action(action)?;
        trim_next = false;
        if let Some(trimmed) = inner.strip_suffix('-')
            && trimmed.ends_with(char::is_whitespace)
        {
            inner = trimmed;
            trim_next = true;
        }
        pieces.push(Piece::Action(tokens(inner)?));
        rest = after;
    }
}

fn unclosed() -> String {
    "template: an action is not closed by \"}}\"".to_owned()
}

/// Finds the `}}` that ends an action, which may itself hold one inside quotes.
fn cut_action(action: &str) -> Result<(&str, &str), String> {
    let mut quote = None;
    let mut escaped = false;
    for (position, letter) in action.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some('"') if letter == '\\' => escaped = true,
            Some(open) if letter == open => quote = None,
            Some(_) => {}
            None if letter == '"' || letter == '`' => quote = Some(letter),
            None if action[position..].starts_with("}}") => return Ok((&action[..position], &action[position + 2..])),
            None => {}
        }
    }
    Err(if quote.is_some() { "template: a text is not closed by its quote".to_owned() } else { unclosed() })
}

fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    let mut after_close = false;
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '|' => (Token::Pipe, 1),
            ',' => (Token::Comma, 1),
            ':' if rest.starts_with(":=") => (Token::Assign, 2),
            '"' => quoted(rest)?,
            '`' => {
                let end = rest[1..].find('`').ok_or("template: a text is not closed by its quote")?;
                (Token::Literal(Value::from(&rest[1..=end])), end + 2)
            }
            '.' => {
                let length = word_length(rest);
                let path = path(&rest[..length])?;
                (if after_close { Token::Suffix(path) } else { Token::Field { from_top: false, path } }, length)
            }
            '$' => {
                let length = 1 + word_length(&rest[1..]);
                let word = &rest[1..length];
                match word.strip_prefix('.') {
                    Some(_) => (Token::Field { from_top: true, path: path(word)? }, length),
                    None if word.is_empty() => (Token::Field { from_top: true, path: Vec::new() }, length),
                    None => (Token::Variable(word.to_owned()), length),
                }
            }
            '0'..='9' | '-' | '+' => {
                let length = 1 + word_length(&rest[1..]);
                let number: i64 =
                    rest[..length].parse().map_err(|_| format!("template: {:?} is not a number", &rest[..length]))?;
                (Token::Literal(Value::from(number)), length)
            }
            letter if letter.is_alphanumeric() || letter == '_' => {
                let length = word_length(rest);
                let token = match &rest[..length] {
                    "true" => Token::Literal(Value::Bool(true)),
                    "false" => Token::Literal(Value::Bool(false)),
                    "nil" => Token::Literal(Value::Null),
                    word => Token::Word(word.to_owned()),
                };
                (token, length)
            }
            other => return Err(format!("template: {other:?} is not expected here")),
        };
        let before = rest.len() - length;
        after_close = token == Token::Close;
        tokens.push(token);
        rest = &rest[length..];
        let trimmed = rest.trim_start();
        after_close &= trimmed.len() == before;
        rest = trimmed;
    }
    Ok(tokens)
}

fn word_length(text: &str) -> usize {
    text.find(|letter: char| !letter.is_alphanumeric() && letter != '_' && letter != '.').unwrap_or(text.len())
}

fn path(text: &str) -> Result<Vec<String>, String> {
    let names = text.strip_prefix('.').unwrap_or(text);
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<String> = names.split('.').map(str::to_owned).collect();
    if names.iter().any(String::is_empty) {
        return Err(format!("template: {text:?} is not a field"));
    }
    Ok(names)
}

fn quoted(text: &str) -> Result<(Token, usize), String> {
    let mut value = String::new();
    let mut letters = text.char_indices().skip(1);
    while let Some((position, letter)) = letters.next() {
        match letter {
            '"' => return Ok((Token::Literal(Value::from(value)), position + 1)),
            '\\' => match letters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 't')) => value.push('\t'),
                Some((_, other)) => value.push(other),
                None => break,
            },
            other => value.push(other),
        }
    }
    Err("template: a text is not closed by its quote".to_owned())
}

enum BlockEnd {
    Text,
    End,
    Else(Vec<Token>),
}

fn block(pieces: &mut std::vec::IntoIter<Piece>, depth: usize) -> Result<(Vec<Node>, BlockEnd), String> {
    if depth > MAX_DEPTH {
        return Err("template: nested too deeply".to_owned());
    }
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.next() {
        let action = match piece {
            Piece::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Piece::Action(action) => action,
        };
        let keyword = match action.first() {
            None => return Err("template: an action is empty".to_owned()),
            Some(Token::Word(word)) => word.as_str(),
            Some(_) => "",
        };
        match keyword {
            "end" => return Ok((nodes, BlockEnd::End)),
            "else" => return Ok((nodes, BlockEnd::Else(action[1..].to_vec()))),
            "if" | "range" | "with" => nodes.push(control(keyword, &action[1..], pieces, depth)?),
            _ => nodes.push(Node::Show(pipeline(&action, depth)?)),
        }
    }
    Ok((nodes, BlockEnd::Text))
}

fn control(
    keyword: &str,
    head: &[Token],
    pieces: &mut std::vec::IntoIter<Piece>,
    depth: usize,
) -> Result<Node, String> {
    // `range $key, $value := .List`: the names are bound by the evaluator under these very names.
    let (names, head) = match head.iter().position(|token| *token == Token::Assign) {
        Some(position) if keyword == "range" => (&head[..position], &head[position + 1..]),
        Some(_) => return Err(format!("template: variables are not supported in {keyword:?}")),
        None => (&head[..0], head),
    };
    let names: Vec<&str> = names
        .iter()
        .filter(|token| **token != Token::Comma)
        .map(|token| match token {
            Token::Variable(name) => Ok(name.as_str()),
            _ => Err("template: \"range\" expects variables before \":=\"".to_owned()),
        })
        .collect::<Result<_, _>>()?;
    let subject = pipeline(head, depth)?;
    let bound = match names[..] {
        [] => None,
        [value] => Some((None, value.to_owned())),
        [key, value] => Some((Some(key.to_owned()), value.to_owned())),
        _ => return Err("template: \"range\" binds at most two variables".to_owned()),
    };
    let (body, end) = block(pieces, depth + 1)?;
    let otherwise = match end {
        BlockEnd::End => Vec::new(),
        BlockEnd::Else(rest) if rest.is_empty() => match block(pieces, depth + 1)? {
            (nodes, BlockEnd::End) => nodes,
            _ => return Err(format!("template: {keyword:?} has no \"end\"")),
        },
        BlockEnd::Else(rest) => match rest.split_first() {
            Some((Token::Word(word), head)) if word == "if" || word == "with" => {
                if depth > MAX_DEPTH {
                    return Err("template: nested too deeply".to_owned());
                }
                vec![control(word, head, pieces, depth + 1)?]
            }
            _ => return Err("template: \"else\" is followed by something else than \"if\"".to_owned()),
        },
        BlockEnd::Text => return Err(format!("template: {keyword:?} has no \"end\"")),
    };
    Ok(match keyword {
        "if" => Node::If { condition: subject, then: body, otherwise },
        "with" => Node::With { value: subject, body, otherwise },
        _ => Node::Range { over: subject, bound, body, otherwise },
    })
}

/// Parses `a b | c d`: the value of each part is the last argument of the next.
fn pipeline(tokens: &[Token], depth: usize) -> Result<Expression, String> {
    let mut position = 0;
    let expression = pipeline_at(tokens, &mut position, depth)?;
    if position < tokens.len() {
        return Err("template: a parenthesis is closed that was not opened".to_owned());
    }
    Ok(expression)
}

fn pipeline_at(tokens: &[Token], position: &mut usize, depth: usize) -> Result<Expression, String> {
    if depth > MAX_DEPTH {
        return Err("template: nested too deeply".to_owned());
    }
    let mut result = command(tokens, position, None, depth)?;
    while tokens.get(*position) == Some(&Token::Pipe) {
        *position += 1;
        result = command(tokens, position, Some(result), depth)?;
    }
    Ok(result)
}

fn command(
    tokens: &[Token],
    position: &mut usize,
    piped: Option<Expression>,
    depth: usize,
) -> Result<Expression, String> {
    let function = match tokens.get(*position) {
        Some(Token::Word(word)) => {
            *position += 1;
            Some(word.clone())
        }
        _ => None,
    };
    let mut operands = Vec::new();
    while let Some(token) = tokens.get(*position) {
        let operand = match token {
            Token::Pipe | Token::Close => break,
            Token::Open => {
                *position += 1;
                let value = pipeline_at(tokens, position, depth + 1)?;
                if tokens.get(*position) != Some(&Token::Close) {
                    return Err("template: a parenthesis is not closed".to_owned());
                }
                match tokens.get(*position + 1) {
                    Some(Token::Suffix(path)) => {
                        *position += 1;
                        Expression::Inside { value: Box::new(value), path: path.clone() }
                    }
                    _ => value,
                }
            }
            Token::Field { from_top, path } => Expression::Field { from_top: *from_top, path: path.clone() },
            Token::Literal(value) => Expression::Literal(value.clone()),
            Token::Variable(name) => variable(name),
            Token::Word(word) => Expression::Call { function: word.clone(), arguments: Vec::new() },
            Token::Comma | Token::Assign | Token::Suffix(_) => {
                return Err("template: something is not expected here".to_owned());
            }
        };
        operands.push(operand);
        *position += 1;
    }
    operands.extend(piped);
    match function {
        Some(function) => Ok(Expression::Call { function, arguments: operands }),
        None if operands.len() == 1 => Ok(operands.remove(0)),
        None if operands.is_empty() => Err("template: a value is missing".to_owned()),
        None => Err("template: a value is followed by another; a function comes first".to_owned()),
    }
}

/// `$name` or `$name.Field`.
fn variable(text: &str) -> Expression {
    let mut parts = text.split('.').map(str::to_owned);
    let name = parts.next().unwrap_or_default();
    Expression::Variable { name, path: parts.collect() }
}
