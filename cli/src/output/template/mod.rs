//! The part of Go's template language that people use with `--format`.
//!
//! Text, fields (`{{.Config.Env}}`), `{{json .}}` and the functions below, pipelines, parentheses, `if`/`else`,
//! `range` and `with`, and comparison by `eq` and `ne`. Anything else is an error that names it.

mod evaluate;
mod parse;

use serde_json::Value;

/// A parsed template.
#[derive(Debug)]
pub(crate) struct Template {
    nodes: Vec<Node>,
}

impl Template {
    /// Parses a template; `\t` and `\n` in its text are a tab and a line feed, as on Docker's command line.
    pub(crate) fn parse(text: &str) -> Result<Template, String> {
        parse::parse(text).map(|nodes| Template { nodes })
    }

    /// Fills the template from `data`.
    pub(crate) fn render(&self, data: &Value) -> Result<String, String> {
        let mut out = String::new();
        evaluate::render(&self.nodes, data, &mut out)?;
        Ok(out)
    }
}

#[derive(Debug)]
enum Node {
    Text(String),
    Show(Expression),
    If {
        condition: Expression,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    /// `bound` names the key, if wanted, and the value.
    Range {
        over: Expression,
        bound: Option<(Option<String>, String)>,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    With {
        value: Expression,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

#[derive(Debug)]
enum Expression {
    /// `.A.B`, or `$.A.B` from the top.
    Field {
        from_top: bool,
        path: Vec<String>,
    },
    /// `(expression).A.B`
    Inside {
        value: Box<Expression>,
        path: Vec<String>,
    },
    /// `$name.A.B`
    Variable {
        name: String,
        path: Vec<String>,
    },
    Literal(Value),
    Call {
        function: String,
        arguments: Vec<Expression>,
    },
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(template: &str) -> Result<String, String> {
        let data = json!({
            "Id": "sha256:0123456789abcdef",
            "Tags": ["a:1", "b:2"],
            "None": [],
            "Config": {"Env": ["A=1", "B=2"], "User": "", "Labels": {"x.y": "z"}, "Tty": false},
            "Size": 1234,
            "Parent": null,
            "Html": "<a & b>",
        });
        Template::parse(template)?.render(&data)
    }

    #[test]
    fn what_people_write() {
        for (template, expected) in [
            ("{{.Id}}", "sha256:0123456789abcdef"),
            ("{{ .Size }}B", "1234B"),
            ("{{.Config.Env}}", "[A=1 B=2]"),
            ("{{json .Config.Env}}", r#"["A=1","B=2"]"#),
            ("{{json .Html}}", r#""<a & b>""#),
            ("{{.Config.Labels}}", "map[x.y:z]"),
            (r#"{{index .Config.Labels "x.y"}}"#, "z"),
            (r#"{{index .Config.Labels "absent"}}"#, ""),
            ("{{.Config.ExposedPorts}} {{.Config.Shell}} {{.Config.Healthcheck}}<{{.Variant}}>", "map[] [] <nil><>"),
            ("{{json .Config.ExposedPorts}} {{if .Config.Healthcheck}}yes{{end}}", "null "),
            ("{{.ID}}", "sha256:0123456789abcdef"),
            ("{{.Config.Labels.absent}}", "<no value>"),
            ("{{index .Tags 1}}", "b:2"),
            ("{{len .Tags}}", "2"),
            ("{{range .Tags}}<{{.}}>{{end}}", "<a:1><b:2>"),
            ("{{range .None}}x{{else}}empty{{end}}", "empty"),
            ("{{range $i, $tag := .Tags}}{{$i}}={{$tag}} {{end}}", "0=a:1 1=b:2 "),
            ("{{if .Config.User}}user{{else}}root{{end}}", "root"),
            ("{{if .Config.Tty}}1{{else if .Size}}2{{else}}3{{end}}", "2"),
            ("{{with .Config}}{{.Tty}}{{end}}", "false"),
            ("{{range .Tags}}{{$.Size}} {{end}}", "1234 1234 "),
            (r#"{{join .Tags ", "}}"#, "a:1, b:2"),
            (r#"{{.Id | upper}}"#, "SHA256:0123456789ABCDEF"),
            (r#"{{truncate .Id 6}}"#, "sha256"),
            (r#"{{(index .Tags 0) | printf "%s!"}}"#, "a:1!"),
            (r#"{{printf "%s %d %q" .Id .Size .Id}}"#, r#"sha256:0123456789abcdef 1234 "sha256:0123456789abcdef""#),
            (r#"{{if eq .Size 1234}}same{{end}}"#, "same"),
            (r#"{{if ne .Id "x"}}other{{end}}"#, "other"),
            (r#"{{if and .Size (not .Config.Tty)}}yes{{end}}"#, "yes"),
            (r#"{{split .Html " " | json}}"#, r#"["<a","&","b>"]"#),
            ("{{println .Size}}", "1234\n"),
            (r"a\tb\n", "a\tb\n"),
            ("a {{- .Size -}} b", "a1234b"),
            ("{{.Parent}}", "<no value>"),
            ("{{/* nothing */}}x", "x"),
        ] {
            assert_eq!(render(template), Ok(expected.to_owned()), "{template}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (template, expected) in [
            ("{{.Nope}}", "template: no field \"Nope\" here; there are Config, Html, Id, None, Parent, Size, Tags"),
            ("{{.Id.X}}", "template: cannot take field \"X\" of a string"),
            ("{{nope .}}", "template: function \"nope\" is not known"),
            ("{{.Id", "template: an action is not closed by \"}}\""),
            ("{{if .Id}}x", "template: \"if\" has no \"end\""),
            ("x{{end}}", "template: \"end\" without a block"),
            ("{{index .Tags 9}}", "template: index 9 is out of range"),
            ("{{}}", "template: an action is empty"),
            ("{{\"x}}", "template: a text is not closed by its quote"),
        ] {
            assert_eq!(render(template), Err(expected.to_owned()), "{template}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_and_not_a_crash() {
        let text = format!("{{{{{}.{}}}}}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(Template::parse(&text).is_err());
        let text = "{{if .Id}}".repeat(100_000);
        assert!(Template::parse(&text).is_err());
    }
}
