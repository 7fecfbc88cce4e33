//! A chart of named horizontal bars, as SVG.

use anyhow::{anyhow, Result};
use plotters::prelude::*;

const WIDTH: u32 = 960;
const BAR_HEIGHT: u32 = 18;
/// Room for the names, the title and the axis.
const NAMES_WIDTH: u32 = 240;
const TITLE_HEIGHT: u32 = 40;
const AXIS_HEIGHT: u32 = 44;

/// Draws one bar for each (name, length), the first at the top. Lengths are 0 or above.
pub(crate) fn draw(title: &str, x_label: &str, bars: &[(String, f64)]) -> Result<String> {
    let mut svg = String::new();
    draw_to(&mut svg, title, x_label, bars).map_err(|e| anyhow!("cannot draw: {e}"))?;
    Ok(svg)
}

fn draw_to(
    svg: &mut String,
    title: &str,
    x_label: &str,
    bars: &[(String, f64)],
) -> Result<(), Box<dyn std::error::Error>> {
    let n = bars.len().max(1) as i32;
    let height = TITLE_HEIGHT + AXIS_HEIGHT + BAR_HEIGHT * bars.len() as u32;
    let root = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, ("sans-serif", 18))?;
    let longest = bars.iter().map(|bar| bar.1).fold(0.0, f64::max);
    let x_max = if longest > 0.0 { 1.05 * longest } else { 1.0 };
    let mut chart = ChartBuilder::on(&root)
        .margin_right(24)
        .x_label_area_size(AXIS_HEIGHT - 8)
        .y_label_area_size(NAMES_WIDTH)
        .build_cartesian_2d(0.0..x_max, (0..n - 1).into_segmented())?;
    let name = |at: &SegmentValue<i32>| match at {
        SegmentValue::CenterOf(row) if (0..n).contains(row) => {
            bars[(n - 1 - row) as usize].0.clone()
        }
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .x_desc(x_label)
        .y_labels(bars.len())
        .y_label_formatter(&name)
        .light_line_style(WHITE)
        .draw()?;
    chart.draw_series(bars.iter().zip((0..n).rev()).map(|(bar, row)| {
        let corners = [
            (0.0, SegmentValue::Exact(row)),
            (bar.1, SegmentValue::Exact(row + 1)),
        ];
        let mut rectangle = Rectangle::new(corners, BLUE.mix(0.7).filled());
        rectangle.set_margin(2, 2, 0, 0);
        rectangle
    }))?;
    root.present()?;
    Ok(())
}
