// What belongs to an account and not to a room: push rules, presence, profile, account data, devices, password.

import assert from "node:assert/strict";

import {
    createClient,
    EventType,
    NotificationCountType,
    PushRuleActionName,
    PushRuleKind,
    RuleId,
    SetPresence,
} from "matrix-js-sdk";

import { made, rejection, until } from "../lib/check.js";
import { login, PASSWORD, received, register, RUN, start, withPassword } from "./session.js";

/** Uses `world.alice`, `world.bob` and `world.openRoom`; makes and drops accounts of its own. */
export async function accountChecks(suite, world) {
    const { alice, bob, baseUrl } = world;

    await suite.check("muting a room comes back by sync and stops its counts; a keyword makes a highlight", async () => {
        const roomId = made("the room", world.openRoom);
        const room = alice.getRoom(roomId);
        const total = () => room.getRoomUnreadNotificationCount(NotificationCountType.Total);
        await alice.sendReadReceipt(room.getLastLiveEvent());
        await until("nothing is unread", () => total() === 0);

        await alice.setRoomMutePushRule("global", roomId, true);
        await until("the rule is there", () => {
            const rules = alice.getAccountData(EventType.PushRules)?.getContent().global;
            return [...rules.override, ...rules.room].some(({ rule_id: id }) => id === roomId);
        });
        const { event_id: muted } = await bob.sendTextMessage(roomId, "nobody hears this");
        await received(alice, roomId, muted);
        assert.equal(total(), 0);

        await alice.setRoomMutePushRule("global", roomId, false);
        const keyword = `banana${RUN}`;
        await alice.addPushRule("global", PushRuleKind.ContentSpecific, keyword, {
            pattern: keyword,
            actions: [PushRuleActionName.Notify, { set_tweak: "highlight" }],
        });
        await bob.sendTextMessage(roomId, `a ${keyword} for you`);
        await until("one is highlighted", () =>
            room.getRoomUnreadNotificationCount(NotificationCountType.Highlight) === 1);
        await alice.deletePushRule("global", PushRuleKind.ContentSpecific, keyword);
        const left = (await alice.getPushRules()).global.content.map(({ rule_id: id }) => id);
        assert.equal(left.includes(keyword), false);
    });

    await suite.check("a default push rule is switched off and on", async () => {
        const enabled = async () =>
            (await bob.getPushRules()).global.override.find(({ rule_id: id }) => id === RuleId.IsUserMention).enabled;
        assert.equal(await enabled(), true);
        await bob.setPushRuleEnabled("global", PushRuleKind.Override, RuleId.IsUserMention, false);
        assert.equal(await enabled(), false);
        await bob.setPushRuleEnabled("global", PushRuleKind.Override, RuleId.IsUserMention, true);
        assert.equal(await enabled(), true);
    });

    await suite.check("a pusher is set, listed and removed", async () => {
        const pusher = {
            app_id: "org.guildhall.test",
            pushkey: `key-${RUN}`,
            kind: "http",
            app_display_name: "test",
            device_display_name: "test",
            lang: "en",
            data: { url: "https://push.example.org/_matrix/push/v1/notify", format: "event_id_only" },
        };
        await bob.setPusher(pusher);
        const [listed] = (await bob.getPushers()).pushers;
        assert.equal(listed.pushkey, pusher.pushkey);
        assert.deepEqual(listed.data, pusher.data);
        await bob.removePusher(pusher.pushkey, pusher.app_id);
        assert.deepEqual((await bob.getPushers()).pushers, []);
    });

    await suite.check("presence and its message reach those who share a room", async () => {
        await bob.setSyncPresence(SetPresence.Unavailable);
        await bob.setPresence({ presence: "unavailable", status_msg: `at lunch ${RUN}` });
        await until("alice sees it", () => {
            const user = alice.getUser(bob.getUserId());
            return user?.presence === "unavailable" && user.presenceStatusMsg === `at lunch ${RUN}`;
        });
        const asked = await alice.getPresence(bob.getUserId());
        assert.equal(asked.presence, "unavailable");
        assert.equal(asked.status_msg, `at lunch ${RUN}`);
        await bob.setSyncPresence(SetPresence.Online);
        await bob.setPresence({ presence: "online" });
        await until("alice sees bob online", () => alice.getUser(bob.getUserId()).presence === "online");
    });

    await suite.check("a display name and an avatar reach the profile and every room", async () => {
        const roomId = made("the room", world.openRoom);
        await bob.setDisplayName(`Bob ${RUN}`);
        await bob.setAvatarUrl("mxc://example.org/avatar");
        await until("alice sees them on the member", () => {
            const member = alice.getRoom(roomId).getMember(bob.getUserId());
            return member?.rawDisplayName === `Bob ${RUN}` && member.getMxcAvatarUrl() === "mxc://example.org/avatar";
        });
        const profile = await alice.getProfileInfo(bob.getUserId());
        assert.equal(profile.displayname, `Bob ${RUN}`);
        assert.equal(profile.avatar_url, "mxc://example.org/avatar");
        assert.deepEqual(await alice.getProfileInfo(bob.getUserId(), "displayname"), { displayname: `Bob ${RUN}` });
    });

    await suite.check("a custom profile field is set, read by another, and deleted", async () => {
        assert.equal(await bob.doesServerSupportExtendedProfiles(), true);
        await bob.setExtendedProfileProperty("m.tz", "Europe/Berlin");
        assert.equal(await alice.getExtendedProfileProperty(bob.getUserId(), "m.tz"), "Europe/Berlin");
        assert.equal((await alice.getExtendedProfile(bob.getUserId()))["m.tz"], "Europe/Berlin");
        await bob.deleteExtendedProfileProperty("m.tz");
        assert.equal((await alice.getExtendedProfile(bob.getUserId()))["m.tz"], undefined);
    });

    await suite.check("the user directory finds a user by display name", async () => {
        await until("alice finds bob", async () => {
            const { results } = await alice.searchUserDirectory({ term: `Bob ${RUN}`, limit: 5 });
            return results.some(({ user_id: id }) => id === bob.getUserId());
        });
    });

    await suite.check("account data and an ignored user reach the user's other sync; what the ignored one says does not", async () => {
        await alice.setAccountData("org.guildhall.test", { run: RUN });
        assert.equal(alice.getAccountData("org.guildhall.test").getContent().run, RUN);
        const other = await start(baseUrl, await register(baseUrl, `carol_${RUN}`));
        try {
            const roomId = made("the room", world.openRoom);
            await other.joinRoom(roomId);
            await other.setIgnoredUsers([bob.getUserId()]);
            await until("bob is ignored", () => other.isUserIgnored(bob.getUserId()));
            const { event_id: unheard } = await bob.sendTextMessage(roomId, "unheard");
            const { event_id: heard } = await alice.sendTextMessage(roomId, "heard");
            await received(other, roomId, heard);
            assert.equal(other.getRoom(roomId).findEventById(unheard), undefined);
        } finally {
            other.stopClient();
        }
    });

    await suite.check("a device is renamed, and deleted only with the password; its token then ends", async () => {
        const account = await login(baseUrl, bob.getUserId());
        await bob.setDeviceDetails(account.device_id, { display_name: "the old phone" });
        assert.equal((await bob.getDevice(account.device_id)).display_name, "the old phone");
        const error = await rejection("deletion without a password", () => bob.deleteDevice(account.device_id));
        assert.equal(error.httpStatus, 401);
        await withPassword(bob)((auth) => bob.deleteDevice(account.device_id, auth ?? undefined));
        const { devices } = await bob.getDevices();
        assert.equal(devices.some(({ device_id: id }) => id === account.device_id), false);
        const phone = createClient({ baseUrl, accessToken: account.access_token, userId: account.user_id });
        assert.equal((await rejection("its token", () => phone.whoami())).errcode, "M_UNKNOWN_TOKEN");
    });

    await suite.check("the password is changed, and only the new one logs in; then the account is deactivated", async () => {
        const account = await register(baseUrl, `dave_${RUN}`);
        const dave = createClient({ baseUrl, accessToken: account.access_token, userId: account.user_id });
        await withPassword(dave)((auth) => dave.setPassword(auth ?? {}, "quite another one 9!", true));
        assert.equal((await rejection("the old password", () => login(baseUrl, account.user_id))).errcode, "M_FORBIDDEN");
        const again = await dave.loginWithPassword(account.user_id, "quite another one 9!");
        assert.equal(again.user_id, account.user_id);
        const error = await rejection("deactivation with a wrong password", async () => {
            const { data } = await rejection("deactivation without any", () => dave.deactivateAccount());
            return dave.deactivateAccount({
                type: "m.login.password",
                identifier: { type: "m.id.user", user: account.user_id },
                password: PASSWORD,
                session: data.session,
            });
        });
        assert.equal(error.httpStatus, 401);
        await dave.deactivateAccount({
            type: "m.login.password",
            identifier: { type: "m.id.user", user: account.user_id },
            password: "quite another one 9!",
            session: error.data.session,
        });
        assert.equal((await rejection("its token", () => dave.whoami())).errcode, "M_UNKNOWN_TOKEN");
        const late = await rejection("login afterwards", () => dave.loginWithPassword(account.user_id, "quite another one 9!"));
        assert.ok(["M_FORBIDDEN", "M_USER_DEACTIVATED"].includes(late.errcode), late.errcode);
    });

    await suite.check("an OpenID token names its user to whoever holds it", async () => {
        const token = await alice.getOpenIdToken();
        const url = new URL("/_matrix/federation/v1/openid/userinfo", baseUrl);
        url.searchParams.set("access_token", token.access_token);
        const answer = await fetch(url);
        assert.equal(answer.status, 200);
        assert.deepEqual(await answer.json(), { sub: alice.getUserId() });
    });

    await suite.check("logout ends the token and the device", async () => {
        const account = await login(baseUrl, bob.getUserId());
        const phone = createClient({ baseUrl, accessToken: account.access_token, userId: account.user_id });
        assert.equal((await phone.whoami()).device_id, account.device_id);
        await phone.logout();
        assert.equal((await rejection("its token", () => phone.whoami())).errcode, "M_UNKNOWN_TOKEN");
        const { devices } = await bob.getDevices();
        assert.equal(devices.some(({ device_id: id }) => id === account.device_id), false);
    });

    await suite.check("a refresh token gives a new pair of tokens, and ends once they are used", async () => {
        const anonymous = createClient({ baseUrl });
        const first = await anonymous.loginRequest({
            type: "m.login.password",
            identifier: { type: "m.id.user", user: bob.getUserId() },
            password: PASSWORD,
            refresh_token: true,
        });
        assert.ok(first.refresh_token);
        const second = await anonymous.refreshToken(first.refresh_token);
        assert.notEqual(second.access_token, first.access_token);
        const as = (token) => createClient({ baseUrl, accessToken: token, userId: first.user_id });
        assert.equal((await as(second.access_token).whoami()).device_id, first.device_id);
        // The new access token has been used, so the old refresh token has ended.
        const old = await rejection("the old refresh token", () => anonymous.refreshToken(first.refresh_token));
        assert.ok([401, 403].includes(old.httpStatus), `the status is ${old.httpStatus}`);
        const third = await anonymous.refreshToken(second.refresh_token);
        await as(third.access_token).logout();
    });
}
