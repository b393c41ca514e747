// Builders for what a provider says of itself. Plain values of the contract; nothing is checked
// here, the host does that (and testing.js in your tests).

// Seldom enough for any service, often enough that a dead session is noticed before lunch.
const VALIDATE_EVERY = 15 * 60;

/** What a rotation does to the old secret, which decides what may be repeated. */
export const CommitClass = Object.freeze({
  Sliding: 'sliding',
  Additive: 'additive',
  CommitOnUse: 'commit-on-use',
  Grace: 'grace',
  BurnOnIssue: 'burn-on-issue',
  /** The contract's names, in its order: the choices of a commit class setting. */
  NAMES: Object.freeze(['sliding', 'additive', 'commit-on-use', 'grace', 'burn-on-issue']),
});

export class Manifest {
  /**
   * @param {string} service `[a-z0-9-]+`
   * @param {string} title One line for people.
   * @param {string} version Of the plugin.
   */
  constructor(service, title, version) {
    /** As the contract has it. */
    this.contract = {
      service,
      title,
      version,
      validateUrl: '',
      /** @type {object[]} */
      keys: [],
      /** @type {string[]} */
      origins: [],
      /** @type {object[]} */
      settings: [],
      /** @type {object[]} */
      methods: [],
      validateInterval: VALIDATE_EVERY,
      /** @type {number | undefined} */
      maxAge: undefined,
      /** @type {[string, string][]} */
      extras: [],
    };
  }

  /**
   * The URL that tells whether a credential lives. May use settings; requests reach it as
   * `{validate_url}`.
   *
   * @param {string} url
   */
  validateUrl(url) {
    this.contract.validateUrl = url;
    return this;
  }

  /**
   * An origin the plugin may reach: `https://api.example.com` or `{base_url.origin}`.
   *
   * @param {string} origin
   */
  origin(origin) {
    this.contract.origins.push(origin);
    return this;
  }

  /** @param {Key} key */
  key(key) {
    this.contract.keys.push(key.contract);
    return this;
  }

  /** @param {Setting} setting */
  setting(setting) {
    this.contract.settings.push(setting.contract);
    return this;
  }

  /**
   * A way to rotate; the first is preferred.
   *
   * @param {Method} method
   */
  method(method) {
    this.contract.methods.push(method.contract);
    return this;
  }

  /** @param {number} seconds */
  validateEvery(seconds) {
    this.contract.validateInterval = seconds;
    return this;
  }

  /**
   * Rotate a generation that gets this old, whether or not it says when it expires.
   *
   * @param {number} seconds
   */
  maxAge(seconds) {
    this.contract.maxAge = seconds;
    return this;
  }

  /**
   * The service ends a session that nobody used for this long, so it is used before.
   *
   * @param {number} seconds
   */
  idleLimit(seconds) {
    this.contract.extras.push(['idle-limit-seconds', String(seconds)]);
    return this;
  }

  /**
   * Where the service documents what this provider relies on.
   *
   * @param {string} url
   */
  source(url) {
    this.contract.extras.push(['source', url]);
    return this;
  }

  /**
   * Where the service documents what a method does to the old secret, which is what its commit
   * class says.
   *
   * @param {string} method
   * @param {string} url
   */
  classSource(method, url) {
    this.contract.extras.push([`class-source:${method}`, url]);
    return this;
  }
}

/** A secret of the credential. Required unless `optional()`. */
export class Key {
  /**
   * @param {string} name
   * @param {object} location
   */
  constructor(name, location) {
    this.contract = { name, location, required: true, reveal: false, help: '' };
  }

  /**
   * A key that is the cookie `cookie` of `domain`, path `/`. The host attaches and captures it.
   * All three may use settings.
   *
   * @param {string} name
   * @param {string} cookie
   * @param {string} domain
   */
  static cookie(name, cookie, domain) {
    return new Key(name, { tag: 'cookie', val: { name: cookie, domain, path: '/' } });
  }

  /**
   * A key that templates place and request rules capture.
   *
   * @param {string} name
   */
  static token(name) {
    return new Key(name, { tag: 'token' });
  }

  /**
   * The cookie's path where it isn't `/`; nothing on a token.
   *
   * @param {string} path
   */
  path(path) {
    const { location } = this.contract;
    if ('val' in location) location.val.path = path;
    return this;
  }

  optional() {
    this.contract.required = false;
    return this;
  }

  /** Ask to see the bytes; the operator is asked by name and may say no. */
  reveal() {
    this.contract.reveal = true;
    return this;
  }

  /**
   * One sentence for the person who adds a credential.
   *
   * @param {string} help
   */
  help(help) {
    this.contract.help = help;
    return this;
  }
}

/** A value the operator chooses for each credential. */
export class Setting {
  /**
   * @param {string} name
   * @param {string} kind
   * @param {string[]} [choices]
   */
  constructor(name, kind, choices = []) {
    /** @type {{ name: string, kind: string, required: boolean, default: string | undefined, choices: string[], help: string }} */
    this.contract = { name, kind, required: false, default: undefined, choices, help: '' };
  }

  /** @param {string} name */
  static text(name) {
    return new Setting(name, 'text');
  }

  /**
   * Gives `{name}`, `{name.host}` and `{name.origin}`.
   *
   * @param {string} name
   */
  static url(name) {
    return new Setting(name, 'url');
  }

  /** @param {string} name */
  static integer(name) {
    return new Setting(name, 'integer');
  }

  /** @param {string} name */
  static boolean(name) {
    return new Setting(name, 'boolean');
  }

  /** @param {string} name */
  static duration(name) {
    return new Setting(name, 'duration');
  }

  /**
   * @param {string} name
   * @param {Iterable<string>} choices
   */
  static choice(name, choices) {
    return new Setting(name, 'choice', [...choices]);
  }

  required() {
    this.contract.required = true;
    return this;
  }

  /** @param {string} value */
  default(value) {
    this.contract.default = value;
    return this;
  }

  /**
   * One sentence for the person who adds a credential.
   *
   * @param {string} help
   */
  help(help) {
    this.contract.help = help;
    return this;
  }
}

/** One way to rotate. */
export class Method {
  /**
   * @param {string} name
   * @param {string} commitClass One of {@link CommitClass}.
   */
  constructor(name, commitClass) {
    /** @type {{ name: string, commitClass: string, commitClassSetting: string | undefined, help: string }} */
    this.contract = { name, commitClass, commitClassSetting: undefined, help: '' };
  }

  /**
   * A choice setting with `CommitClass.NAMES` by which the operator says how the service at hand
   * behaves.
   *
   * @param {string} setting
   */
  commitClassFrom(setting) {
    this.contract.commitClassSetting = setting;
    return this;
  }

  /**
   * One sentence for the operator.
   *
   * @param {string} help
   */
  help(help) {
    this.contract.help = help;
    return this;
  }
}
