//! A row of line charts with a common vertical axis, as SVG.

use std::path::Path;

use anyhow::{anyhow, Result};
use plotters::prelude::*;
use rwkv_edge::OutputFile;

use crate::paths;

/// One chart.
pub(crate) struct Series {
    x_label: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
}

impl Series {
    pub(crate) fn new(x_label: &'static str) -> Self {
        Series {
            x_label,
            points: Vec::new(),
        }
    }
}

const SIZE: (u32, u32) = (960, 400);

/// The charts to be drawn: their file is begun before the long work, which then is not done in vain.
pub(crate) struct Plot(OutputFile);

impl Plot {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        paths::check_replaced(path, paths::Written::Chart)?;
        Ok(Plot(OutputFile::create(path)?))
    }

    pub(crate) fn write(self, title: &str, y_label: &str, series: &[Series]) -> Result<()> {
        let mut svg = String::new();
        draw(&mut svg, title, y_label, series).map_err(|e| anyhow!("cannot draw: {e}"))?;
        let mut file = self.0;
        file.write(svg.as_bytes())?;
        file.commit()?;
        Ok(())
    }
}

fn draw(
    svg: &mut String,
    title: &str,
    y_label: &str,
    series: &[Series],
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, ("sans-serif", 18))?;
    let all = series.iter().flat_map(|series| &series.points);
    let y_max = 1.15 * all.map(|point| point.1).fold(0.0, f64::max);
    for (area, series) in root.split_evenly((1, series.len())).iter().zip(series) {
        let x_max = 1.05
            * series
                .points
                .iter()
                .map(|point| point.0)
                .fold(0.0, f64::max);
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..x_max, 0.0..y_max)?;
        chart
            .configure_mesh()
            .x_desc(series.x_label)
            .y_desc(y_label)
            .light_line_style(WHITE)
            .draw()?;
        chart.draw_series(LineSeries::new(series.points.iter().copied(), &BLUE))?;
        let dots = series
            .points
            .iter()
            .map(|&point| Circle::new(point, 3, BLUE.filled()));
        chart.draw_series(dots)?;
    }
    root.present()?;
    Ok(())
}
