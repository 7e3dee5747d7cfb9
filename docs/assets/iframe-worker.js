// Browsers run no Worker on a page that was opened from the disk. The search needs one: this is a hidden frame that
// acts like it, for as much of the interface as the search uses.
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentDocument;
      inside.open();
      inside.close();
      const load = (src) =>
        new Promise((resolve, reject) => {
          const script = inside.createElement("script");
          Object.assign(script, { src, onload: resolve, onerror: reject });
          inside.documentElement.append(script);
        });
      this.scope = frame.contentWindow;
      this.scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.scope.importScripts = async (...urls) => {
        for (const src of urls) await load(src);
      };
      this.ready = load(url);
    }

    postMessage(data) {
      this.ready.then(() => this.scope.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
