// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! A flame graph as an SVG image: each box is a function, as wide as what was counted below it. A
//! browser shows a box's numbers when the pointer is over it, and makes a clicked one as wide as
//! the image.

use std::collections::BTreeMap;
use std::fmt::Write as _;

const WIDTH: f64 = 1200.0;
const ROW: f64 = 16.0;
const TOP: f64 = 40.0;
/// Characters of the monospaced font are about this wide.
const CHARACTER: f64 = 7.2;
/// Narrower boxes are left out: nobody can see them.
const NARROWEST: f64 = 0.1;
/// Deeper boxes are left out.
const DEEPEST: usize = 2048;

#[derive(Default)]
struct Node {
    value: u64,
    children: BTreeMap<String, Node>,
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Not allowed in XML at all.
            c if c.is_control() => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

/// A warm colour that is the same for a name in every image; the kernel's frames are cooler.
fn colour(name: &str) -> String {
    let hash = name
        .bytes()
        .fold(2_166_136_261u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619));
    if name.ends_with("_[k]") {
        format!("rgb({},{},{})", 90 + hash % 60, 160 + (hash >> 8) % 60, 215 + (hash >> 16) % 40)
    } else {
        format!("rgb({},{},{})", 205 + hash % 50, 80 + (hash >> 8) % 130, (hash >> 16) % 55)
    }
}

struct Drawing {
    out: String,
    total: u64,
    unit: &'static str,
    height: f64,
}

impl Drawing {
    #[allow(clippy::cast_precision_loss)]
    fn share(&self, value: u64) -> f64 {
        value as f64 / self.total.max(1) as f64
    }

    fn node(&mut self, name: &str, node: &Node, x: f64, depth: usize) {
        let width = self.share(node.value) * WIDTH;
        if width < NARROWEST || depth > DEEPEST {
            return;
        }
        #[allow(clippy::cast_precision_loss)]
        let y = self.height - ROW * (depth + 1) as f64;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let room = (width / CHARACTER) as usize;
        let label: String = if name.chars().count() <= room {
            name.into()
        } else if room < 3 {
            String::new()
        } else {
            name.chars().take(room - 2).chain("..".chars()).collect()
        };
        let _ = writeln!(
            self.out,
            "<g><title>{} ({} {}, {:.2}%)</title><rect x=\"{x:.2}\" y=\"{y:.1}\" \
             width=\"{width:.2}\" height=\"15\" fill=\"{}\" rx=\"1\"/><text x=\"{:.2}\" \
             y=\"{:.1}\">{}</text></g>",
            escaped(name),
            node.value,
            self.unit,
            self.share(node.value) * 100.0,
            colour(name),
            x + 2.0,
            y + 11.5,
            escaped(&label)
        );
        let mut at = x;
        for (name, child) in &node.children {
            self.node(name, child, at, depth + 1);
            at += self.share(child.value) * WIDTH;
        }
    }
}

fn depth(node: &Node) -> usize {
    1 + node.children.values().map(depth).max().unwrap_or(0)
}

/// Widens the box that is clicked, and what stands above and below it, to the whole image.
const SCRIPT: &str = "
const W=1200,gs=[...document.querySelectorAll('g')].map(g=>{
 const r=g.querySelector('rect'),n=a=>+r.getAttribute(a),t=g.querySelector('title').textContent;
 return {g,r,t:g.querySelector('text'),x:n('x'),y:n('y'),w:n('width'),name:t.replace(/ \\([^(]*\\)$/,'')};
});
function zoom(to){
 const k=W/to.w;
 for(const b of gs){
  const inside=b.x>=to.x-0.01&&b.x+b.w<=to.x+to.w+0.01,below=b.x<=to.x+0.01&&b.x+b.w>=to.x+to.w-0.01;
  const on=b.y<=to.y?inside:below;
  b.g.style.display=on?'':'none';
  if(!on)continue;
  const x=b.y<=to.y?(b.x-to.x)*k:0,w=b.y<=to.y?b.w*k:W,room=Math.floor(w/7.2);
  b.r.setAttribute('x',x);b.r.setAttribute('width',w);b.t.setAttribute('x',x+2);
  b.t.textContent=b.name.length<=room?b.name:room<3?'':b.name.slice(0,room-2)+'..';
 }
}
for(const b of gs)b.g.addEventListener('click',()=>zoom(b));
";

/// Draws these stacks, each from the root to the leaf with its value.
pub fn svg(title: &str, unit: &'static str, stacks: &[(Vec<String>, u64)]) -> String {
    let mut root = Node::default();
    for (path, value) in stacks {
        root.value += value;
        let mut node = &mut root;
        for name in path.iter().take(DEEPEST) {
            node = node.children.entry(name.clone()).or_default();
            node.value += value;
        }
    }
    #[allow(clippy::cast_precision_loss)]
    let height = TOP + ROW * (depth(&root) + 1) as f64;
    let mut drawing = Drawing { out: String::new(), total: root.value, unit, height: height - ROW };
    drawing.node("all", &root, 0.0, 0);
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"monospace\" font-size=\"12\">\n\
         <rect class=\"paper\" width=\"100%\" height=\"100%\" fill=\"#fcfcf4\"/>\n\
         <text x=\"600\" y=\"24\" text-anchor=\"middle\" font-size=\"17\">{}</text>\n\
         {}<script><![CDATA[{SCRIPT}]]></script>\n</svg>\n",
        escaped(title),
        drawing.out
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_shares() {
        let path = |names: &[&str]| names.iter().map(|name| (*name).to_string()).collect();
        let image = svg(
            "a <title>",
            "samples",
            &[
                (path(&["p", "main", "f<&>"]), 30),
                (path(&["p", "main", "g_[k]"]), 60),
                (path(&["p", "main"]), 10),
            ],
        );
        assert!(image.contains("<title>f&lt;&amp;&gt; (30 samples, 30.00%)</title>"), "{image}");
        assert!(image.contains("<title>main (100 samples, 100.00%)</title>"));
        assert!(image.contains("x=\"360.00\"") && image.contains("width=\"720.00\""));
        assert!(!image.contains("a <title>") && image.matches("<g>").count() == 5);
        assert!(svg("nothing", "samples", &[]).contains("</svg>"));
    }
}
