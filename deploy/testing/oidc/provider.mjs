// An OpenID provider of its own for one test: any password does, roles are what the settings say.
import { readFileSync } from "node:fs";
import { Provider } from "oidc-provider";

const settings = JSON.parse(readFileSync(process.argv[2], "utf8"));
const claimsOf = (id) => ({ sub: id, preferred_username: id, ...(settings.accounts[id] ?? {}) });

const provider = new Provider(settings.issuer, {
  clients: [settings.client],
  claims: { openid: ["sub"], profile: ["preferred_username", "roles"] },
  findAccount: async (_, id) => ({ accountId: id, claims: async () => claimsOf(id) }),
  pkce: { required: () => true },
  cookies: { keys: ["for tests alone"] },
  features: { devInteractions: { enabled: true } },
});
provider.listen(settings.port, "127.0.0.1", () => console.log("listening"));
