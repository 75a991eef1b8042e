(() => {
  const channels = (colour) => {
    const [r, g, b, a = 1] = colour.match(/[\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const over = (top, below) => {
    const mix = (channel) => top[channel] * top.a + below[channel] * (1 - top.a);
    return { r: mix("r"), g: mix("g"), b: mix("b"), a: 1 };
  };
  const behind = (node) => {
    if (node === null) return { r: 255, g: 255, b: 255, a: 1 };
    const own = channels(getComputedStyle(node).backgroundColor);
    return own.a === 1 ? own : over(own, behind(node.parentElement));
  };
  const light = ({ r, g, b }) => {
    const [x, y, z] = [r, g, b].map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const contrast = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const wrong = [];
  let seen = 0;
  const look = (element, text) => {
    if (text.trim() === "" || !element.checkVisibility() || element.closest(":disabled, option")) return;
    seen += 1;
    const ground = behind(element);
    const ratio = contrast(over(channels(getComputedStyle(element).color), ground), ground);
    if (ratio < 4.5) wrong.push(`${ratio.toFixed(2)} ${element.tagName} ${text.trim().slice(0, 40)}`);
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) look(texts.currentNode.parentElement, texts.currentNode.data);
  for (const control of document.querySelectorAll("input, select, textarea")) look(control, control.value);
  const named = (one) => one.labels?.length || one.ariaLabel || one.getAttribute("alt") !== null || one.textContent.trim();
  for (const one of document.querySelectorAll("button, input, select, textarea, progress, img")) {
    if (!named(one)) wrong.push(`${one.outerHTML.slice(0, 80)} has no name`);
  }
  return seen > 10 ? wrong : [`only ${seen} texts were found`];
})()
