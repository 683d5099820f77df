//! The distributions of the stall as a picture: each snapshot a dot, each case a row of the four ways.

#![allow(clippy::cast_precision_loss)] // what is drawn is as precise as a pixel

use std::path::Path;

use anyhow::{Result, anyhow};
use harness::figures::percentile;
use plotters::prelude::*;

use crate::figures::Figures;

/// The ways in their colours, from top to bottom.
const WAYS: [(&str, RGBColor); 4] = [
    ("floor", RGBColor(120, 120, 120)),
    ("hostsnap", RGBColor(0, 110, 190)),
    ("qemu-ga", RGBColor(200, 60, 30)),
    ("qemu-ga data", RGBColor(225, 150, 60)),
];
const ROW: u32 = 74;
const WIDTH: u32 = 980;

/// Draws it.
pub(crate) fn draw(figures: &Figures, path: &Path) -> Result<()> {
    let cases = figures.cases();
    let rows = u32::try_from(cases.len())?;
    let root = SVGBackend::new(path, (WIDTH, rows * ROW + 130)).into_drawing_area();
    chart(figures, &cases, &root).map_err(|error| anyhow!("draw {}: {error}", path.display()))
}

fn chart(
    figures: &Figures,
    cases: &[(&str, &str, &str)],
    root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
) -> Result<(), Box<dyn std::error::Error>> {
    root.fill(&WHITE)?;
    let last = cases.len() as f64;
    let longest = figures.all().iter().map(|figure| figure.measured.stall_us).max().unwrap_or(1);
    let mut chart = ChartBuilder::on(root)
        .caption("The application's write stall, ms (a bar: the median)", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(150)
        .build_cartesian_2d((1.0..longest as f64 / 1000.0 * 1.2).log_scale(), last..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_desc("milliseconds, logarithmic")
        .label_style(("sans-serif", 14))
        .draw()?;
    for (row, case) in (0u32..).zip(cases) {
        let (fs, driver, load) = case;
        let label = format!("{fs}, {driver}, {load}");
        let place = (6, 50 + i32::try_from(row * ROW)? + i32::try_from(ROW / 2)?);
        root.draw(&Text::new(label, place, ("sans-serif", 14)))?;
        for (line, (way, colour)) in (0u32..).zip(WAYS) {
            let y = f64::from(row) + 0.2 * f64::from(line + 1);
            let stalls = figures.of(*case, way, |measured| measured.stall_us);
            let median = percentile(&stalls, 50) as f64 / 1000.0;
            let dots =
                stalls.iter().map(|us| Circle::new((*us as f64 / 1000.0, y), 3, colour.mix(0.45).filled()));
            let series = chart.draw_series(dots)?;
            if row == 0 {
                series.label(way).legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
            }
            chart.draw_series([PathElement::new(
                [(median, y - 0.09), (median, y + 0.09)],
                colour.stroke_width(3),
            )])?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .label_font(("sans-serif", 14))
        .draw()?;
    root.present()?;
    Ok(())
}
