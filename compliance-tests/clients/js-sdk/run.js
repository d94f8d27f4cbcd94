// matrix-js-sdk 43 with its Rust crypto against a homeserver: `node run.js BASE_URL`.
//
// Prints one line a check and `js-sdk: N passed, N failed`. CLIENT_LOG=1 shows what the Rust crypto says.

import assert from "node:assert/strict";

import { Suite } from "../lib/check.js";
import { accountChecks } from "./account.js";
import { conversationChecks } from "./conversation.js";
import { encryptionChecks } from "./encryption.js";
import { roomChecks } from "./rooms.js";
import { register, registrationFlows, RUN, start } from "./session.js";

const baseUrl = process.argv[2];
if (!baseUrl) throw new Error("usage: node run.js BASE_URL");
if (!process.env.CLIENT_LOG) {
    for (const level of ["log", "trace", "debug", "info", "warn", "error"]) console[level] = () => {};
}
// The SDK works in the background too; a request of its own that fails there must not end the checks that follow.
process.on("unhandledRejection", (error) => process.stderr.write(`in the background: ${error?.stack ?? error}\n`));

const suite = new Suite("js-sdk");
const world = { baseUrl };

await suite.check("registration offers the dummy stage", async () => {
    const { flows, session } = await registrationFlows(baseUrl, `alice_${RUN}`);
    assert.ok(session);
    assert.ok(flows.some(({ stages }) => stages.length === 1 && stages[0] === "m.login.dummy"));
});
const ready = await suite.check("two users register and sync", async () => {
    for (const name of ["alice", "bob"]) {
        const account = await register(baseUrl, `${name}_${RUN}`);
        assert.match(account.user_id, new RegExp(`^@${name}_${RUN}:`));
        world[name] = await start(baseUrl, account);
        assert.equal((await world[name].whoami()).device_id, account.device_id);
    }
});
if (ready) {
    await encryptionChecks(suite, world);
    await conversationChecks(suite, world);
    await roomChecks(suite, world);
    await accountChecks(suite, world);
}
for (const client of [world.alice, world.bob]) client?.stopClient();
process.exit(suite.close());
