// A file server on loopback for the bundled page, on a port that the system picks.

import { createReadStream } from "node:fs";
import { createServer } from "node:http";
import path from "node:path";

const TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
};

/** Serves the files of `folder`, one level of subfolders deep; gives its address and the server to close. */
export async function serve(folder) {
    const server = createServer((request, response) => {
        const { pathname } = new URL(request.url, "http://localhost");
        const file = pathname === "/" ? "index.html" : pathname.slice(1);
        if (!/^(i18n\/)?[\w.-]+$/.test(file)) return void response.writeHead(404).end();
        const stream = createReadStream(path.join(folder, file));
        stream.once("open", () => {
            response.writeHead(200, { "Content-Type": TYPES[path.extname(file)] ?? "application/octet-stream" });
            stream.pipe(response);
        });
        stream.once("error", () => response.writeHead(404).end());
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    return { address: `http://127.0.0.1:${server.address().port}`, server };
}
