// Element's user interface in Chromium against a homeserver: `node run.js BASE_URL BUNDLE`.
//
// Two people, each in a browser profile of their own, do by mouse and keyboard what people do. BUNDLE is what build.js
// made. Prints one line a check and `browser: N passed, N failed`; on a failure SCREENSHOTS=FOLDER keeps pictures.

import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import path from "node:path";

import { chromium } from "playwright-core";

import { made, Suite, until } from "../lib/check.js";
import { png } from "../lib/png.js";
import { serve } from "./serve.js";

const [baseUrl, bundle] = process.argv.slice(2);
if (!bundle) throw new Error("usage: node run.js BASE_URL BUNDLE");

const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const PASSWORD = "correct horse battery staple 7!";
const RUN = Date.now().toString(36);
/** How long the page may take to show what a check waits for. */
const PAGE_MS_MAX = 20_000;
/** More messages than Element loads with a room, so that scrolling back asks the server. */
const HISTORY_LENGTH = 60;

/** A call of the client-server API, for what the checks need around the page. */
async function api(method, endpoint, body, token) {
    const response = await fetch(new URL(`/_matrix/client/v3/${endpoint}`, baseUrl), {
        method,
        headers: { "Content-Type": "application/json", ...(token && { Authorization: `Bearer ${token}` }) },
        body: JSON.stringify(body),
    });
    const answer = await response.json();
    if (!response.ok) throw new Error(`${method} ${endpoint}: ${response.status} ${JSON.stringify(answer)}`);
    return answer;
}

/** A new account, and a browser profile with Element's login page open in it. */
async function person(browser, address, name) {
    const username = `${name}_${RUN}`;
    const account = await api("POST", "register", { username, password: PASSWORD, auth: { type: "m.login.dummy" } });
    const profile = `profile/${encodeURIComponent(account.user_id)}/displayname`;
    await api("PUT", profile, { displayname: username }, account.access_token);
    const context = await browser.newContext({ viewport: { width: 1280, height: 800 } });
    context.setDefaultTimeout(PAGE_MS_MAX);
    const page = await context.newPage();
    const who = { username, userId: account.user_id, token: account.access_token, page, pageToken: undefined };
    // Element asks for media by the old paths, and its service worker turns these into the new ones, with the token.
    // This shell has no service worker, so it is done here.
    page.on("request", (request) => {
        const token = request.headers().authorization;
        if (token && request.url().startsWith(baseUrl)) who.pageToken = token;
    });
    await context.route(/\/_matrix\/media\/v3\/(download|thumbnail)\//, (route) =>
        route.continue({
            url: route.request().url().replace("/_matrix/media/v3/", "/_matrix/client/v1/media/"),
            headers: { ...route.request().headers(), authorization: who.pageToken },
        }),
    );
    await page.goto(`${address}/?hs=${encodeURIComponent(baseUrl)}#/login`);
    return who;
}

const roomTile = ({ page }, name) => page.getByRole("treeitem", { name: new RegExp(name) });
const message = ({ page }, text) => page.locator(".mx_EventTile", { hasText: text }).last();
const composer = ({ page }) => page.getByRole("textbox", { name: /^Send (a|an encrypted) message/ });

async function say(who, text) {
    await composer(who).click();
    await who.page.keyboard.type(text);
    await who.page.keyboard.press("Enter");
}

const suite = new Suite("browser");
const { address, server } = await serve(bundle);
const browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ],
});
let alice;
let bob;
let openRoom;
let secretRoom;

/** A check that keeps a picture of each page when it fails. */
async function check(name, body, msMax = 60_000) {
    if (await suite.check(name, body, msMax)) return true;
    if (process.env.SCREENSHOTS) {
        for (const who of [alice, bob]) {
            const file = `${suite.failed}-${who?.username}.png`;
            if (who) await writeFile(path.join(process.env.SCREENSHOTS, file), await who.page.screenshot());
        }
    }
    return false;
}

const ready = await check("two people log in by the login page", async () => {
    [alice, bob] = await Promise.all(["alice", "bob"].map((name) => person(browser, address, `web_${name}`)));
    const { room_id: roomId } = await api("POST", "createRoom", { name: `Square ${RUN}`, preset: "private_chat" }, bob.token);
    openRoom = roomId;
    for (let number = 0; number < HISTORY_LENGTH; number += 1) {
        const content = { msgtype: "m.text", body: `history number ${number}.` };
        await api("PUT", `rooms/${encodeURIComponent(roomId)}/send/m.room.message/${RUN}-${number}`, content, bob.token);
    }
    await api("POST", `rooms/${encodeURIComponent(roomId)}/invite`, { user_id: alice.userId }, bob.token);
    for (const who of [alice, bob]) {
        await who.page.locator("input[name=username]").fill(who.username);
        await who.page.locator("input[name=password]").fill(PASSWORD);
        await who.page.locator("input[type=submit]").click();
    }
    for (const who of [alice, bob]) await roomTile(who, `Square ${RUN}`).waitFor();
});

if (ready) {
    await check("an invitation is shown, and accepted by a click", async () => {
        await roomTile(alice, `Square ${RUN}`).click();
        await alice.page.getByText(`Do you want to join Square ${RUN}?`).waitFor();
        await alice.page.getByRole("button", { name: "Accept" }).click();
        await composer(alice).waitFor();
        await message(alice, `history number ${HISTORY_LENGTH - 1}.`).waitFor();
    });

    await check("a message typed by one appears on the other's page, both ways", async () => {
        await roomTile(bob, `Square ${RUN}`).click();
        await say(alice, "good morning");
        await message(bob, "good morning").waitFor();
        await say(bob, "and to you");
        await message(alice, "and to you").waitFor();
        const sender = message(alice, "and to you").locator(".mx_DisambiguatedProfile_displayName");
        assert.equal(await sender.innerText(), bob.username);
    });

    await check("typing is shown", async () => {
        await composer(bob).click();
        await bob.page.keyboard.type("let me think");
        await alice.page.getByText(`${bob.username} is typing`).waitFor();
        await bob.page.keyboard.press("Control+a");
        await bob.page.keyboard.press("Delete");
    });

    await check("a reaction by a click is shown to the other", async () => {
        await message(alice, "and to you").hover();
        await alice.page.getByRole("button", { name: "React" }).click();
        await alice.page.locator(".mx_EmojiPicker_item", { hasText: "👍" }).first().click();
        await message(bob, "and to you").locator(".mx_ReactionsRow", { hasText: "👍" }).waitFor();
    });

    await check("an edit is shown to the other as edited", async () => {
        await composer(alice).click();
        await alice.page.keyboard.type("a tpyo");
        await alice.page.keyboard.press("Enter");
        await message(bob, "a tpyo").waitFor();
        await composer(alice).click();
        await alice.page.keyboard.press("ArrowUp");
        const editor = alice.page.getByRole("textbox", { name: "Edit message" });
        await editor.waitFor();
        await alice.page.keyboard.press("Control+a");
        await alice.page.keyboard.type("a typo");
        await alice.page.keyboard.press("Enter");
        await message(bob, "a typo").getByText("(edited)").waitFor();
    });

    await check("a picture chosen in one page is shown in the other", async () => {
        const chooser = alice.page.waitForEvent("filechooser");
        await alice.page.getByRole("button", { name: "Attachment" }).click();
        await (await chooser).setFiles({ name: `picture-${RUN}.png`, mimeType: "image/png", buffer: png(320, 200, Date.now()) });
        await alice.page.getByRole("button", { name: "Upload" }).click();
        const image = bob.page.locator(`img.mx_MImageBody_thumbnail[alt="picture-${RUN}.png"]`).last();
        await image.waitFor();
        await until("the picture has loaded", () => image.evaluate((element) => element.complete && element.naturalWidth > 0));
    });

    await check("scrolling up brings the room's first messages", async () => {
        const first = alice.page.locator(".mx_EventTile", { hasText: "history number 0." });
        const timeline = alice.page.locator(".mx_RoomView_messagePanel .mx_AutoHideScrollbar, .mx_RoomView_messagePanel");
        await timeline.last().hover();
        await until("the first message is there", async () => {
            await alice.page.mouse.wheel(0, -2_000);
            return (await first.count()) > 0;
        }, PAGE_MS_MAX);
        const jump = alice.page.getByRole("button", { name: "Scroll to most recent messages" });
        if (await jump.isVisible()) await jump.click();
    });

    await check("messages in an encrypted room are decrypted on the other's page, both ways", async () => {
        const created = await api("POST", "createRoom", {
            name: `Secret ${RUN}`,
            preset: "trusted_private_chat",
            invite: [alice.userId],
            initial_state: [
                { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } },
            ],
        }, bob.token);
        secretRoom = created.room_id;
        await roomTile(alice, `Secret ${RUN}`).click();
        await alice.page.getByRole("button", { name: "Accept" }).click();
        await roomTile(bob, `Secret ${RUN}`).click();
        await composer(alice).waitFor();
        await bob.page.getByText(`${alice.username} joined the room`).first().waitFor();
        await say(alice, "over the hill");
        await message(bob, "over the hill").waitFor();
        await say(bob, "and far away");
        await message(alice, "and far away").waitFor();
        const { chunk } = await api("GET", `rooms/${encodeURIComponent(secretRoom)}/messages?dir=b&limit=2`, undefined, bob.token);
        assert.deepEqual(chunk.map(({ type }) => type), ["m.room.encrypted", "m.room.encrypted"]);
    });

    await check("a message in another room is shown as unread, and read when opened", async () => {
        made("the encrypted room", secretRoom);
        const badge = roomTile(alice, `Square ${RUN}`).locator(".mx_NotificationBadge_count");
        const content = { "msgtype": "m.text", "body": "look here", "m.mentions": { user_ids: [alice.userId] } };
        await api("PUT", `rooms/${encodeURIComponent(openRoom)}/send/m.room.message/${RUN}-look`, content, bob.token);
        await badge.waitFor();
        assert.equal(await badge.innerText(), "1");
        await roomTile(alice, `Square ${RUN}`).click();
        await message(alice, "look here").waitFor();
        await badge.waitFor({ state: "detached" });
    });

    await check("after a reload the session, the rooms and the decrypted messages are there", async () => {
        await alice.page.reload();
        await roomTile(alice, `Secret ${RUN}`).click();
        await message(alice, "and far away").waitFor();
        await say(alice, "back again");
        await message(bob, "back again").waitFor();
    });

    await check("signing out leads back to the login page, and the page's token has ended", async () => {
        const page = bob.page;
        const token = made("the page's token", bob.pageToken);
        await page.getByRole("button", { name: "User menu" }).click();
        await page.getByRole("menuitem", { name: "Sign out" }).click();
        // An encrypted room without key backup: Element warns first.
        await page.getByRole("button", { name: "I don't want my encrypted messages" }).click();
        await page.locator("input[name=username]").waitFor();
        const answer = await fetch(new URL("/_matrix/client/v3/account/whoami", baseUrl), { headers: { Authorization: token } });
        assert.equal(answer.status, 401);
    });
}

await browser.close();
server.close();
process.exit(suite.close());
