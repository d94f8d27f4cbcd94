// A PNG picture made from nothing: this folder then needs no picture file, and each run uploads other bytes.

import { crc32, deflateSync } from "node:zlib";

const SIGNATURE = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);

/** A `width` × `height` RGB gradient; `seed` shifts its blue. */
export function png(width, height, seed) {
    const header = Buffer.alloc(13);
    header.writeUInt32BE(width, 0);
    header.writeUInt32BE(height, 4);
    header.set([8, 2, 0, 0, 0], 8);
    const rows = Buffer.alloc(height * (1 + width * 3));
    for (let y = 0; y < height; y += 1) {
        for (let x = 0; x < width; x += 1) {
            const at = y * (1 + width * 3) + 1 + x * 3;
            rows.set([(x * 255) / width, (y * 255) / height, seed & 0xff], at);
        }
    }
    return Buffer.concat([
        SIGNATURE,
        chunk("IHDR", header),
        chunk("IDAT", deflateSync(rows)),
        chunk("IEND", Buffer.alloc(0)),
    ]);
}

/** Width and height of a PNG or JPEG, or an error if `bytes` is neither. */
export function dimensions(bytes) {
    if (bytes.subarray(0, 8).equals(SIGNATURE)) return [bytes.readUInt32BE(16), bytes.readUInt32BE(20)];
    if (bytes.readUInt16BE(0) !== 0xffd8) throw new Error("neither a PNG nor a JPEG");
    // A JPEG is a row of segments; the frame header (C0 to CF, less C4, C8 and CC) holds the size.
    for (let at = 2; at + 9 < bytes.length; at += 2 + bytes.readUInt16BE(at + 2)) {
        const marker = bytes[at + 1];
        if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
            return [bytes.readUInt16BE(at + 7), bytes.readUInt16BE(at + 5)];
        }
    }
    throw new Error("a JPEG without a frame header");
}

function chunk(type, data) {
    const body = Buffer.concat([Buffer.from(type, "latin1"), data]);
    const out = Buffer.alloc(8 + body.length);
    out.writeUInt32BE(data.length, 0);
    out.set(body, 4);
    out.writeUInt32BE(crc32(body), 4 + body.length);
    return out;
}
