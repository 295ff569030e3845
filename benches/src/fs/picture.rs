//! The ratios as a picture: one line for each row, a mark for each peer, on a logarithmic scale.

use std::fmt::Write as _;

use super::plan::aims;
use super::samples::Samples;

/// Draws times as multiples of overlayfs's. Rows without overlayfs are left out.
pub fn svg(samples: &Samples, peers: &[String], title: &str) -> String {
    let rows: Vec<_> = samples.order.iter().filter(|key| samples.median(key, "overlayfs").is_some()).collect();
    let height = TOP + rows.len() as f64 * LINE + 20.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"15\">{}</text>\n",
        escape(title)
    );
    let mut legend = 10.0;
    for (peer, color) in colored(peers) {
        let _ = writeln!(
            out,
            "<circle cx=\"{legend}\" cy=\"38\" r=\"5\" fill=\"{color}\"/><text x=\"{}\" y=\"42\">{}</text>",
            legend + 9.0,
            escape(peer)
        );
        legend += 30.0 + 7.0 * peer.len() as f64;
    }
    let _ = writeln!(
        out,
        "<path d=\"M {legend} 32 v 12\" stroke=\"black\" stroke-width=\"2\"/><text x=\"{}\" y=\"42\">aim</text>",
        legend + 7.0
    );
    for mark in [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0] {
        let (x, bottom) = (place(mark), height - 14.0);
        let color = if mark == 1.0 { "#444" } else { "#ddd" };
        let _ = writeln!(
            out,
            "<path d=\"M {x:.1} {} V {bottom}\" stroke=\"{color}\"/>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{mark}</text>",
            TOP - 8.0,
            TOP - 12.0
        );
    }
    for (number, key) in rows.into_iter().enumerate() {
        let y = TOP + number as f64 * LINE + LINE / 2.0;
        let label = if key.layers == 1 { key.name.to_owned() } else { format!("{}, {} layers", key.name, key.layers) };
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <path d=\"M {LEFT} {y:.1} H {}\" stroke=\"#eee\"/>",
            LEFT - 8.0,
            y + 4.0,
            escape(&label),
            WIDTH - 20.0
        );
        if let (Some(aim), _) = aims(key) {
            let _ = writeln!(
                out,
                "<path d=\"M {:.1} {:.1} v 14\" stroke=\"black\" stroke-width=\"2\"/>",
                place(aim),
                y - 7.0
            );
        }
        // Ours last, on top.
        for (peer, color) in colored(peers).rev() {
            if let Some(ratio) = samples.ratio(key, peer, "overlayfs") {
                let _ = writeln!(
                    out,
                    "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{color}\" fill-opacity=\"0.85\">\
                     <title>{}: {ratio:.2}</title></circle>",
                    place(ratio),
                    escape(peer)
                );
            }
        }
    }
    out.push_str("</svg>\n");
    out
}

fn colored(peers: &[String]) -> impl DoubleEndedIterator<Item = (&String, &'static str)> {
    let shown: Vec<&String> = peers.iter().filter(|peer| *peer != "overlayfs").collect();
    shown.into_iter().zip(COLORS.into_iter().cycle().take(peers.len()).collect::<Vec<_>>())
}

/// Where a ratio stands, from 0.02 to 50.
fn place(ratio: f64) -> f64 {
    let share = (ratio.clamp(0.02, 50.0).ln() - 0.02_f64.ln()) / (50.0_f64.ln() - 0.02_f64.ln());
    LEFT + share * (WIDTH - 20.0 - LEFT)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

const WIDTH: f64 = 1100.0;
const LEFT: f64 = 270.0;
const TOP: f64 = 75.0;
const LINE: f64 = 19.0;
const COLORS: [&str; 9] =
    ["#d62728", "#e377c2", "#ff7f0e", "#bcbd22", "#8c564b", "#9467bd", "#1f77b4", "#17becf", "#7f7f7f"];

#[cfg(test)]
mod tests {
    use super::super::samples::RowKey;
    use super::*;

    #[test]
    fn one_mark_for_each_peer_but_overlayfs() {
        let mut samples = Samples::default();
        let key = RowKey { name: "rename", layers: 1 };
        for (peer, value) in [("strata", 20.0), ("overlayfs", 10.0), ("plain", 5.0)] {
            samples.add(&key, peer, 1, value);
        }
        let text = svg(&samples, &["strata", "overlayfs", "plain"].map(str::to_owned), "a < b");
        assert!(text.contains("a &lt; b") && text.contains("<title>strata: 2.00</title>"), "{text}");
        assert_eq!(text.matches("<title>").count(), 2, "{text}");
        assert!((place(1.0) - (LEFT + WIDTH - 20.0) / 2.0).abs() < 1.0);
    }
}
