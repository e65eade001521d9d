//! A profile as a picture: how fast each op computes, against what the machine allows at its ratio of
//! operations to bytes (Williams, Waterman and Patterson, 2009, "Roofline").

use std::fmt::Write;

use super::ceiling::Ceilings;
use super::profile::{OpGroup, Profile};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 600.0;
/// Of the plot in the picture.
const LEFT: f64 = 112.0;
const RIGHT: f64 = 930.0;
const TOP: f64 = 84.0;
const BOTTOM: f64 = 530.0;

/// Of a phase's time: ops that take less are left out.
const LEAST_SHARE: f64 = 0.005;

/// One a phase, of equal brightness to the eye.
const COLOURS: [&str; 6] = ["#0b62b0", "#b4460a", "#1b7a3d", "#8a2d9c", "#7a5c00", "#b00b4e"];
/// A label's line, and a letter.
const LINE: f64 = 15.0;
const LETTER: f64 = 6.6;

/// Both axes are logarithmic: operations a byte, and operations a second.
struct Axes {
    /// Exponents of ten.
    x: (f64, f64),
    y: (f64, f64),
}

/// An op's place, and how large it is drawn: its area is its share of the phase's time.
struct Point {
    x: f64,
    y: f64,
    radius: f64,
    colour: &'static str,
    label: String,
}

/// An SVG picture of all phases. It has a background of its own, so that it can be read on any page.
pub fn roofline(profiles: &[Profile], ceilings: &Ceilings, title: &str) -> String {
    let groups = |profile: &Profile| {
        let groups = profile.groups().into_iter();
        let least = LEAST_SHARE * profile.sum;
        let is_drawn = |g: &OpGroup| g.bytes > 0 && g.flops > 0 && g.time >= least;
        groups.filter(is_drawn).collect::<Vec<_>>()
    };
    let placed: Vec<(f64, f64)> = profiles.iter().flat_map(groups).map(|g| place(&g)).collect();
    let axes = Axes::around(&placed, ceilings);
    let mut svg = frame(title);
    axes.draw(&mut svg);
    axes.draw_roof(&mut svg, ceilings);
    let mut points = Vec::new();
    for (profile, colour) in profiles.iter().zip(COLOURS.iter().cycle()) {
        for group in groups(profile) {
            let (intensity, rate) = place(&group);
            let share = group.time / profile.sum;
            points.push(Point {
                x: axes.x(intensity),
                y: axes.y(rate),
                radius: 3.5 + 16.0 * share.sqrt(),
                colour,
                label: label(&group, ceilings),
            });
        }
    }
    draw_points(&mut svg, &mut points);
    draw_legend(&mut svg, profiles);
    svg + "</svg>\n"
}

/// Operations a byte, and operations a second.
fn place(group: &OpGroup) -> (f64, f64) {
    (group.flops as f64 / group.bytes as f64, group.flops as f64 / group.time)
}

/// `matmul down_proj [512, 1536] x [576, 1536] x4, 53 MB: 62%`
fn label(group: &OpGroup, ceilings: &Ceilings) -> String {
    let percent = 100.0 * group.floor(ceilings) / group.time;
    let mb = group.bytes as f64 / 1e6;
    let digits = if mb < 9.5 { 1 } else { 0 };
    format!("{} x{}, {mb:.digits$} MB: {percent:.0}%", group.name(), group.count)
}

fn frame(title: &str) -> String {
    let title = title.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"Helvetica, Arial, sans-serif\" \
         font-size=\"12\" fill=\"#202124\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"6\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"30\" font-size=\"17\" font-weight=\"bold\">{title}</text>\n"
    )
}

impl Axes {
    /// Room for all points, the roof's ridge and the words on its slope.
    fn around(points: &[(f64, f64)], ceilings: &Ceilings) -> Self {
        let ridge = ceilings.flops_per_s / ceilings.read_bytes_per_s;
        let xs = points.iter().map(|point| point.0).chain([ridge, ridge / 20.0, 1.0]);
        let ys = points.iter().map(|point| point.1).chain([ceilings.flops_per_s]);
        let range = |values: &mut dyn Iterator<Item = f64>, room: f64| {
            let logs: Vec<f64> = values.map(f64::log10).collect();
            let least = logs.iter().copied().fold(f64::INFINITY, f64::min);
            let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            (least - 0.4, most + room)
        };
        Self { x: range(&mut { xs }, 0.4), y: range(&mut { ys }, 0.25) }
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * (value.log10() - self.x.0) / (self.x.1 - self.x.0)
    }

    fn y(&self, value: f64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * (value.log10() - self.y.0) / (self.y.1 - self.y.0)
    }

    /// Lines at the powers of ten.
    fn draw(&self, svg: &mut String) {
        let powers = |range: (f64, f64)| (range.0.ceil() as i32)..=(range.1.floor() as i32);
        for power in powers(self.x) {
            let (x, below) = (self.x(10f64.powi(power)), BOTTOM + 18.0);
            let value = 10f64.powi(power);
            line(svg, [x, TOP, x, BOTTOM], "#e0e0e0", 1.0);
            let _ = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{below}\" text-anchor=\"middle\">{value}</text>"
            );
        }
        for power in powers(self.y) {
            let (y, beside) = (self.y(10f64.powi(power)), LEFT - 8.0);
            let value = rate(10f64.powi(power));
            line(svg, [LEFT, y, RIGHT, y], "#e0e0e0", 1.0);
            let _ = writeln!(
                svg,
                "<text x=\"{beside}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
                y + 4.0
            );
        }
        let _ = writeln!(
            svg,
            "<rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#80868b\"/>\n\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">operations per byte that must be \
             read (FLOP/byte)</text>\n\
             <text transform=\"translate(18 {}) rotate(-90)\" text-anchor=\"middle\">operations \
             per second</text>",
            RIGHT - LEFT,
            BOTTOM - TOP,
            (LEFT + RIGHT) / 2.0,
            BOTTOM + 42.0,
            (TOP + BOTTOM) / 2.0,
        );
    }

    fn draw_roof(&self, svg: &mut String, ceilings: &Ceilings) {
        let Ceilings { read_bytes_per_s: read, flops_per_s: flops, .. } = *ceilings;
        let ridge = flops / read;
        // The slope from where it enters the plot, at the left or from below.
        let start = 10f64.powf(self.x.0).max(10f64.powf(self.y.0) / read);
        let slope = [self.x(start), self.y(start * read), self.x(ridge), self.y(flops)];
        line(svg, slope, "#202124", 2.0);
        line(svg, [self.x(ridge), self.y(flops), RIGHT, self.y(flops)], "#202124", 2.0);
        let angle = (slope[3] - slope[1]).atan2(slope[2] - slope[0]).to_degrees();
        // At the upper end, away from decode's points, and off the line.
        let (along, across) = (angle.to_radians().cos(), angle.to_radians().sin());
        let (x, y) =
            (slope[2] - 12.0 * along + 9.0 * across, slope[3] - 12.0 * across - 9.0 * along);
        let _ = writeln!(
            svg,
            "<text transform=\"translate({x:.1} {y:.1}) rotate({angle:.2})\" \
             text-anchor=\"end\">{:.1} GB/s, a plain read</text>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}, multiply-adds in registers</text>",
            read / 1e9,
            RIGHT - 6.0,
            self.y(flops) - 8.0,
            rate(flops)
        );
    }
}

/// Points with their labels, which step down where they would cover one another or a point.
fn draw_points(svg: &mut String, points: &mut [Point]) {
    points.sort_by(|a, b| a.y.total_cmp(&b.y));
    // What is not to be covered: left, top, right, bottom.
    let square =
        |&Point { x, y, radius, .. }: &Point| [x - radius, y - radius, x + radius, y + radius];
    let mut taken: Vec<[f64; 4]> = points.iter().map(square).collect();
    for Point { x, y, radius, colour, label } in points {
        // To the right of the point, or to its left where the plot ends.
        let (away, width) = (*radius + 10.0, LETTER * label.len() as f64);
        let is_left = *x + away + width > RIGHT;
        let (near, anchor) = if is_left { (*x - away, "end") } else { (*x + away, "start") };
        let (left, right) = if is_left { (near - width, near) } else { (near, near + width) };
        let mut top = *y - LINE / 2.0;
        let covers = |[l, t, r, b]: &&[f64; 4], top: f64| {
            left < *r && *l < right && top < *b && *t < top + LINE
        };
        while let Some([.., bottom]) = taken.iter().find(|other| covers(other, top)) {
            top = *bottom;
        }
        taken.push([left, top, right, top + LINE]);
        let middle = top + LINE / 2.0;
        let end = if is_left { near + 2.0 } else { near - 2.0 };
        line(svg, [*x, *y, end, middle], colour, 0.75);
        let _ = writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius:.1}\" fill=\"{colour}\" \
             fill-opacity=\"0.35\" stroke=\"{colour}\"/>\n\
             <text x=\"{near:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{label}</text>",
            middle + 4.0
        );
    }
}

fn draw_legend(svg: &mut String, profiles: &[Profile]) {
    let mut x = LEFT;
    for (profile, colour) in profiles.iter().zip(COLOURS.iter().cycle()) {
        let _ = writeln!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"56\" r=\"6\" fill=\"{colour}\" fill-opacity=\"0.35\" \
             stroke=\"{colour}\"/>\n<text x=\"{:.1}\" y=\"60\" fill=\"{colour}\">{}</text>",
            x + 6.0,
            x + 18.0,
            profile.phase
        );
        x += 48.0 + LETTER * profile.phase.len() as f64;
    }
    let _ = writeln!(
        svg,
        "<text x=\"{RIGHT}\" y=\"60\" text-anchor=\"end\" fill=\"#5f6368\">area: share of the phase's \
         time, from 0.5%; MB: read; percent: of the roof above</text>"
    );
}

fn line(svg: &mut String, [x1, y1, x2, y2]: [f64; 4], colour: &str, width: f64) {
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" \
         stroke-width=\"{width}\"/>"
    );
}

/// `12.5 TFLOP/s`
fn rate(flops_per_s: f64) -> String {
    let units = [(1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s"), (1e3, "kFLOP/s")];
    let (unit, name) =
        units.into_iter().find(|(unit, _)| flops_per_s >= 0.999 * unit).unwrap_or((1.0, "FLOP/s"));
    let digits = if flops_per_s < 9.99 * unit { 1 } else { 0 };
    let number = format!("{:.digits$}", flops_per_s / unit);
    format!("{} {name}", number.trim_end_matches(".0"))
}
