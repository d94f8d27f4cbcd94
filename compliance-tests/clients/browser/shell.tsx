// The page around Element's user interface: what Element Web's `vector/` folder is, cut down to what a test needs.
//
// The homeserver's address comes from the query, `?hs=…`; there is no configuration file, no service worker, no theme.

import "@vector-im/compound-design-tokens/assets/web/css/compound-design-tokens.css";
import "@vector-im/compound-web/dist/style.css";
import React from "react";
import ReactDOM from "react-dom";
import BasePlatform from "matrix-react-sdk/src/BasePlatform";
import { setLanguage } from "matrix-react-sdk/src/languageHandler";
import PlatformPeg from "matrix-react-sdk/src/PlatformPeg";
import SdkConfig from "matrix-react-sdk/src/SdkConfig";

class TestPlatform extends BasePlatform {
    public async getConfig() {
        return undefined;
    }
    public getDefaultDeviceDisplayName() {
        return "Element in Chromium";
    }
    public getHumanReadableName() {
        return "Test Platform";
    }
    public async requestNotificationPermission() {
        return "denied";
    }
    public async getAppVersion() {
        return "test";
    }
    public reload() {
        window.location.reload();
    }
}

async function main(): Promise<void> {
    PlatformPeg.set(new TestPlatform());
    const homeserver = new URLSearchParams(window.location.search).get("hs")!;
    SdkConfig.put({ brand: "Element", default_server_config: { "m.homeserver": { base_url: homeserver } } });
    await setLanguage(["en"]);
    // Only now: these modules read the configuration while they load.
    const { default: AutoDiscoveryUtils } = await import("matrix-react-sdk/src/utils/AutoDiscoveryUtils");
    const { default: MatrixChat } = await import("matrix-react-sdk/src/components/structures/MatrixChat");
    const validated = await AutoDiscoveryUtils.validateServerConfigWithStaticUrls(homeserver);
    SdkConfig.add({ validated_server_config: validated });

    // The URL's fragment is the screen, as in Element Web.
    const screen = () => ({ screen: window.location.hash.replace(/^#\/?/, ""), params: {} });
    const chat = React.createRef<InstanceType<typeof MatrixChat>>();
    window.addEventListener("hashchange", () => chat.current?.showScreen(screen().screen, screen().params));
    ReactDOM.render(
        <MatrixChat
            ref={chat}
            config={SdkConfig.get()}
            onNewScreen={(name: string, replace = false) => {
                const url = `${window.location.pathname}${window.location.search}#/${name}`;
                window.history[replace ? "replaceState" : "pushState"]({}, "", url);
            }}
            makeRegistrationUrl={() => window.location.href}
            realQueryParams={{}}
            startingFragmentQueryParams={{}}
            enableGuest={false}
            initialScreenAfterLogin={screen()}
            defaultDeviceDisplayName="Element in Chromium"
        />,
        document.getElementById("matrixchat"),
    );
}

void main();
