//! One colour a class: distinct, also to colour-blind eyes, and always the same for the same class.

/// An opaque colour.
pub type Rgb = [u8; 3];

/// The first seven are those of Okabe and Ito (Color Universal Design, 2008) without black. Each further one is, of a grid
/// of 4096 colours that are neither grey nor very dark nor very bright, the one farthest (in Oklab) from all before it, as
/// seen with normal sight (weighted 0.6), deuteranopia and protanopia (Machado et al., 2009). So the fewer the classes,
/// the farther apart their colours.
const PALETTE: [u32; 90] = [
    0xe69f00, 0x56b4e9, 0x009e73, 0xf0e442, 0x0072b2, 0xd55e00, 0xcc79a7, 0x882255, 0x6600ff, 0x77ffff, 0x8877ff, 0x00dd99,
    0x775500, 0x553399, 0xbbccff, 0xbb3388, 0x0033cc, 0xff4477, 0x88ff99, 0xdd33dd, 0xffbbcc, 0x995555, 0x99bb66, 0xff77cc,
    0xcc1133, 0x99dd66, 0x888844, 0x2288dd, 0x6699ff, 0x4455bb, 0x226677, 0x55bb99, 0xffbb00, 0x9977bb, 0x3366ff, 0xaa9900,
    0x8833dd, 0x00aabb, 0x88dddd, 0x554477, 0x993399, 0xeebb99, 0xcc5599, 0xaa1144, 0xaaeebb, 0xff9977, 0xddaacc, 0x884466,
    0xdd99ff, 0xdd9999, 0x66dd33, 0x883322, 0x448866, 0xff44cc, 0x66ff66, 0xcc8855, 0xccdd88, 0x7766cc, 0x33aa55, 0x66ddbb,
    0x009900, 0x88bb22, 0x33ffdd, 0xcc77ff, 0xbb22ee, 0xbb44bb, 0x995599, 0xff2244, 0xaa6655, 0xdd6688, 0x0000ee, 0xcc99dd,
    0xaa88dd, 0x6611bb, 0xaabbee, 0xff6688, 0xbb00aa, 0xdd4466, 0xbb2200, 0x774444, 0xaa1188, 0x66eeff, 0xaa6688, 0x44ff11,
    0x0077dd, 0x772288, 0x4499aa, 0x447733, 0x7722aa, 0x555599,
];

/// The colour of a class, counted from 0; after 90 classes they come round again.
pub fn class_color(class: usize) -> Rgb {
    let [_, r, g, b] = PALETTE[class % PALETTE.len()].to_be_bytes();
    [r, g, b]
}

/// Black or white, whichever stands out more from `ground` (contrast as WCAG 2.1 defines it).
pub fn text_color(ground: Rgb) -> Rgb {
    let luminance = luminance(ground);
    if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) { [0, 0, 0] } else { [255, 255, 255] }
}

/// Relative luminance, 0 to 1 (WCAG 2.1).
fn luminance(rgb: Rgb) -> f32 {
    let [r, g, b] = rgb.map(|c| {
        let c = f32::from(c) / 255.0;
        if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
    });
    0.2126 * r + 0.7152 * g + 0.0722 * b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ninety_classes_have_ninety_colours() {
        let mut colors: Vec<Rgb> = (0..90).map(class_color).collect();
        colors.sort_unstable();
        colors.dedup();
        assert_eq!(colors.len(), 90);
        assert_eq!(class_color(90), class_color(0));
        class_color(usize::MAX);
    }

    #[test]
    fn text_has_a_contrast_of_four_and_a_half_on_every_colour() {
        for class in 0..90 {
            let ground = luminance(class_color(class));
            let text = luminance(text_color(class_color(class)));
            let contrast = (ground.max(text) + 0.05) / (ground.min(text) + 0.05);
            assert!(contrast >= 4.5, "class {class}: {contrast}");
        }
    }
}
