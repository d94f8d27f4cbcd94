//! Images for tests.

/// A PNG of `width` × `height` grey pixels, uncompressed.
///
/// # Panics
/// When it is too large.
pub fn png(width: u32, height: u32) -> Vec<u8> {
    png_claiming(width, height, [width, height])
}

/// The same with a header that claims another size.
///
/// # Panics
/// When it is too large.
pub fn png_claiming(width: u32, height: u32, [wide, high]: [u32; 2]) -> Vec<u8> {
    fn chunk(kind: [u8; 4], data: &[u8], out: &mut Vec<u8>) {
        out.extend(
            u32::try_from(data.len())
                .expect("a small image")
                .to_be_bytes(),
        );
        let start = out.len();
        out.extend(kind);
        out.extend(data);
        let mut crc = u32::MAX;
        for byte in &out[start..] {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 {
                    0xedb8_8320 ^ (crc >> 1)
                } else {
                    crc >> 1
                };
            }
        }
        out.extend((!crc).to_be_bytes());
    }
    let row = [
        vec![0],
        vec![0x80; usize::try_from(width).expect("a small image")],
    ]
    .concat();
    let raw = row.repeat(usize::try_from(height).expect("a small image"));
    let mut stream = vec![0x78, 0x01];
    let blocks: Vec<&[u8]> = raw.chunks(65_535).collect();
    for (number, block) in blocks.iter().enumerate() {
        let length = u16::try_from(block.len()).expect("blocks are small");
        stream.push(u8::from(number + 1 == blocks.len()));
        stream.extend([length.to_be_bytes()[1], length.to_be_bytes()[0]]);
        stream.extend([(!length).to_be_bytes()[1], (!length).to_be_bytes()[0]]);
        stream.extend(*block);
    }
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in &raw {
        a = (a + u32::from(*byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    stream.extend(((b << 16) | a).to_be_bytes());
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    let header = [
        &wide.to_be_bytes()[..],
        &high.to_be_bytes(),
        &[8, 0, 0, 0, 0],
    ]
    .concat();
    chunk(*b"IHDR", &header, &mut out);
    chunk(*b"IDAT", &stream, &mut out);
    chunk(*b"IEND", &[], &mut out);
    out
}
