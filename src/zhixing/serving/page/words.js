/** Everything that the page itself says, in English and Chinese, and the switch between them. */
import { el } from "./dom.js";

const WORDS = {
  skip: ["Skip to the models", "跳到模型"],
  title: ["Try the models", "试用模型"],
  loading: ["Asking the server for its models …", "正在向服务器询问模型……"],
  about: ["{n} loaded. Whatever you do here, the page shows you how to do it in code.", "已加载 {n} 个模型。您在此处的每一步，页面都会给出对应的代码。"],
  none: ["The server has no model loaded.", "服务器未加载任何模型。"],
  only_trainings: ["No model is loaded. This server shows how trainings go.", "未加载模型。此服务器显示训练的进展。"],
  none_mend: ["Start it with a run: zhixing serve RUN", "请指定训练结果启动：zhixing serve RUN"],
  tabs: ["What the models can do", "模型的用途"],
  foot: [
    "What a model says may be wrong. This page talks to this server only, and keeps nothing once you close it, but your language.",
    "模型所言可能有误。本页只与本服务器通信；关闭后除语言选择外不留任何内容。",
  ],
  key: ["API key", "API 密钥"],
  key_use: ["Use this key", "使用此密钥"],
  key_forget: ["Forget it", "忘记密钥"],
  key_note: ["It is kept in this tab until you close it, and sent to this server only.", "密钥只保存在此标签页中，关闭即失效，且只发往本服务器。"],
  key_needed: ["This server answers with an API key only.", "此服务器需要 API 密钥。"],
  key_kept: ["The key is accepted.", "密钥有效。"],

  chat: ["Chat", "对话"],
  write: ["Write on", "续写"],
  translate: ["Translate", "翻译"],
  summarize: ["Summarize", "摘要"],
  classify: ["Classify", "分类"],
  compare: ["Compare", "比较"],
  attention: ["Attention", "注意力"],
  trainings: ["Trainings", "训练"],

  model: ["Model", "模型"],
  context: ["reads up to {n} tokens", "最多读 {n} 个词元"],
  examples: ["For example", "示例"],
  settings: ["How it writes", "写作方式"],
  own: ["as the model", "按模型设定"],
  reset: ["Set back", "恢复默认"],
  stop: ["Stop", "停止"],
  stopped: ["Stopped.", "已停止。"],
  done: ["Done.", "已完成。"],
  working: ["Working …", "处理中……"],
  waiting: ["Still waiting: the server is busy with others, or the line is slow.", "仍在等待：服务器正忙，或网络较慢。"],

  temperature: ["Temperature", "温度"],
  temperature_own: ["The model's own setting. Move it to set another.", "使用模型自带的设定；移动滑块可更改。"],
  temperature_0: ["Always the likeliest next piece: the same text every time.", "总取最可能的下一片段：每次结果相同。"],
  temperature_low: ["Keeps to what is likely: safe, and sometimes dull.", "偏向可能性高的片段：稳妥，有时平淡。"],
  temperature_1: ["As often as the model finds each piece likely.", "按模型给出的概率选取。"],
  temperature_high: ["Takes unlikely pieces more often: bolder, with more slips.", "更常选取不太可能的片段：更大胆，也更易出错。"],
  top_p: ["Top p", "Top p"],
  top_p_own: ["The model's own setting. Move it to set another.", "使用模型自带的设定；移动滑块可更改。"],
  top_p_1: ["Every piece may come, however unlikely.", "任何片段都可能出现，无论多不可能。"],
  top_p_less: ["Only the likeliest pieces that make up {n}% together.", "只在合计占 {n}% 的最可能片段中选取。"],
  max_tokens: ["Most tokens", "最多词元"],
  max_tokens_note: ["It ends after so many pieces. A piece is a word, or part of one.", "写满这么多片段即止；一个片段是一个词或词的一部分。"],
  seed: ["Seed", "种子"],
  seed_none: ["Empty: another text every time.", "留空：每次结果不同。"],
  seed_set: ["The same settings give the same text again.", "相同设置会得到相同的文本。"],
  beams: ["Beams", "束宽"],
  beams_own: ["The model's own setting, but 3 at least, for the other ways. Move it to set another.", "使用模型自带的设定，但至少为 3，以给出其他写法；移动滑块可更改。"],
  beams_1: ["Takes the likeliest piece each time: quickest.", "每步取最可能的片段：最快。"],
  beams_more: ["Follows the {n} likeliest beginnings at once: slower, often better.", "同时保留 {n} 个最可能的开头：较慢，往往更好。"],

  send: ["Send", "发送"],
  send_hint: ["Enter sends, Shift and Enter begin a new line.", "回车发送，Shift+回车换行。"],
  message: ["Your message", "您的消息"],
  system: ["System message", "系统消息"],
  system_note: ["Said before the conversation, to tell the model how to behave.", "放在对话之前，说明模型应如何表现。"],
  conversation: ["Conversation", "对话内容"],
  you: ["You", "您"],
  again: ["Another reply", "重新生成"],
  clear: ["New conversation", "新对话"],
  cleared: ["A new conversation.", "已开始新对话。"],
  begin: ["Say something, or click an example.", "说点什么，或点击示例。"],
  cut: ["There was no room for the oldest {n} turns: the model did not see them.", "最早的 {n} 轮放不下：模型未看到它们。"],
  full_length: ["Ended by the limit of tokens.", "已达词元上限。"],
  empty: ["The model said nothing.", "模型没有说话。"],
  unanswered: ["No reply came.", "未得到回复。"],
  broken: ["Broken off.", "中途断开。"],

  prompt: ["Text to go on with", "要续写的文本"],
  go_on: ["Write on", "续写"],
  written: ["What it wrote", "写出的内容"],
  pieces_note: [
    "Point at a piece, click it to keep it, or use the arrow keys: how likely it was, and what could have come. The stronger its line, the less likely it was.",
    "指向片段，点按可将其固定，或用方向键：可见其概率与其他可能。下划线越重，可能性越小。",
  ],
  piece: ["{piece}, {p}", "{piece}，{p}"],
  could: ["What could have come", "其他可能"],
  could_table: ["Probabilities at this place", "此处的概率"],
  take: ["Go on with “{piece}” instead", "改用“{piece}”续写"],
  token: ["piece", "片段"],
  probability: ["probability", "概率"],
  taken: ["taken", "所选"],

  to_translate: ["Text to translate", "要翻译的文本"],
  to_summarize: ["Text to summarize", "要摘要的文本"],
  to_classify: ["Text to classify", "要分类的文本"],
  target: ["Into", "译为"],
  translation: ["Translation", "译文"],
  summary: ["Summary", "摘要"],
  others: ["Other ways ({n})", "其他写法（{n}）"],
  score: ["score {n}", "得分 {n}"],
  share: ["{a} to {b} characters", "从 {a} 字到 {b} 字"],
  alignment: ["What it read for each piece", "各片段的对应原文"],
  alignment_note: [
    "A row is a piece that was written, a column one that was read for it. The darker, the more; the frame has the most of its row. Point at a cell or use the arrow keys for its number.",
    "行为写出的片段，列为所读原文的片段。颜色越深份额越大，方框为该行最大者。指向格子或用方向键可见数值。",
  ],
  alignment_cell: ["{a} ← {b}: {n}", "{a} ← {b}：{n}"],

  labels: ["How likely each label is", "各标签的概率"],
  label: ["label", "标签"],
  polarity: ["Opinion from −1 to 1: {n}", "评价（−1 至 1）：{n}"],
  value: ["Value", "数值"],
  no_label: ["No label reaches one half.", "没有标签达到一半概率。"],
  because: ["The words that speak for and against “{label}”", "支持与反对“{label}”的词"],
  because_value: ["The words that raise and lower the value", "使数值升高与降低的词"],
  why: ["Why {label}?", "为何是{label}？"],
  speaks_for: ["speaks for it", "支持"],
  speaks_against: ["speaks against it", "反对"],
  word: ["word", "词"],
  weight: ["weight", "权重"],
  weightiest: ["The weightiest words", "份额最大的词"],
  weighs_nothing: ["No word weighs anything.", "没有任何词有权重。"],
  too_long_to_explain: ["Texts of more than 5,000 characters are not explained.", "超过 5,000 字的文本不作解释。"],
  read_beginning: ["The text is longer than the model reads: it saw the beginning only.", "文本超出模型可读长度：只读了开头。"],
  not_complete: ["The weights miss the change of the score by {n}.", "权重之和与得分变化相差 {n}。"],
  moved: ["What moved this model, not what is true.", "此处所示为模型的依据，而非事实。"],

  to_compare: ["Texts, one a line", "文本，每行一段"],
  likeness: ["How alike the texts are, from −1 to 1", "文本的相似度（−1 至 1）"],
  first_compared: ["The first {a} of {n} texts are compared.", "只比较了 {n} 段中的前 {a} 段。"],
  two_lines: ["Give at least two lines.", "请至少给出两行。"],

  to_attend: ["Text for the model to read", "给模型读的文本"],
  attend: ["Show attention", "显示注意力"],
  both_ways: ["Each token looks at all", "每个词元看所有词元"],
  both_ways_note: ["Tokens that were read: each may look at all of them.", "所读的词元：每个都可以看所有词元。"],
  before: ["Each token looks back", "每个词元往回看"],
  before_note: ["Each token looks at itself and those before it: above the diagonal nothing can be.", "每个词元只看自己和前面的词元：对角线之上必为空。"],
  across: ["What is written looks at what was read", "写出的看所读的"],
  across_note: ["A row is a token that is written, a column one that was read.", "行为写出的词元，列为所读的词元。"],
  layer: ["layer {n}", "第 {n} 层"],
  head: ["Layer {layer}, head {head}", "第 {layer} 层，第 {head} 头"],
  attention_table: ["Attention of layer {layer}, head {head}: rows look, columns are looked at", "第 {layer} 层第 {head} 头的注意力：行看列"],
  attention_note: [
    "The stronger the shade, the more a row looks at a column; the frame has the most of its row. Point at a cell or use the arrow keys for its number. This shows where a head looks, not why the model answers as it does.",
    "颜色越浓，行看列越多；方框为该行最大者。指向格子或用方向键可见数值。此处只说明该头看了哪里，并不说明模型为何如此回答。",
  ],

  runs: ["Training runs", "训练"],
  no_runs: ["There is no run in the folder yet. What is trained into it appears here.", "目录中尚无训练；训练写入后会显示在此。"],
  most_runs: ["Up to {n} runs are shown at once.", "最多同时显示 {n} 个训练。"],
  choose_run: ["Choose a run to see its curve.", "请选择一个训练以查看曲线。"],
  running: ["running", "训练中"],
  finished: ["finished", "已完成"],
  halted: ["stopped", "已中断"],
  at_step: ["step {a} of {b}", "第 {a} / {b} 步"],
  at_step_only: ["step {a}", "第 {a} 步"],
  not_begun: ["nothing measured yet", "尚无记录"],
  left_seconds: ["about {n} s left", "约剩 {n} 秒"],
  left_minutes: ["about {n} min left", "约剩 {n} 分钟"],
  left_hours: ["about {a} h {b} min left", "约剩 {a} 小时 {b} 分钟"],
  took_seconds: ["{n} s of training", "已训练 {n} 秒"],
  took_minutes: ["{n} min of training", "已训练 {n} 分钟"],
  took_hours: ["{a} h {b} min of training", "已训练 {a} 小时 {b} 分钟"],
  losses: ["Loss", "损失"],
  losses_note: [
    "Lower is better. Where held-out loss rises while training loss falls, the model learns by heart. Point at the curve or use the arrow keys for the values of a step.",
    "越低越好。若训练损失下降而验证损失上升，模型是在死记。指向曲线或用方向键可见某一步的数值。",
  ],
  axis_step: ["step", "步"],
  axis_loss: ["loss", "损失"],
  training_loss: ["training", "训练"],
  heldout_loss: ["held-out", "验证"],
  best_loss: ["best held-out", "最佳验证"],
  best_at: ["{n} at step {a}", "{n}（第 {a} 步）"],
  last_values: ["The last values", "最新数值"],
  run: ["run", "训练"],
  step: ["step", "步"],
  curve: ["Curves of training and held-out loss by step; the table below has the last values", "训练与验证损失随步数的曲线；最新数值见下表"],
  value_at: ["Step {a}", "第 {a} 步"],
  value_of: ["{name}: training {a}, held-out {b}", "{name}：训练 {a}，验证 {b}"],

  curl: ["Copy as curl", "复制为 curl"],
  python: ["Copy as Python", "复制为 Python"],
  copied: ["Copied.", "已复制。"],
  not_copied: ["Your browser lets no page copy here; the code is marked, copy it yourself.", "浏览器不允许复制；代码已选中，请手动复制。"],
  code: ["This in code", "对应代码"],
  blank: ["Write something first.", "请先输入文字。"],

  retry: ["Try again", "再试一次"],
  lost: ["The connection to the server is lost.", "与服务器的连接已断开。"],
  lost_mend: ["See whether the server runs and you are connected, then try again.", "请确认服务器在运行、网络已连接，然后再试。"],
  wrong_key: ["The server does not accept this key.", "服务器不接受此密钥。"],
  wrong_key_mend: ["Give one of the keys in the file that the server was started with.", "请填写启动服务器时密钥文件中的一个密钥。"],
  full: ["The server is full: as many requests wait as may wait.", "服务器已满：排队的请求已达上限。"],
  full_mend: ["Come again in {n} s; nothing is lost.", "请在 {n} 秒后再试；内容不会丢失。"],
  long: ["This is too long for the model: {a} tokens, and it reads {b}.", "超出模型可读长度：共 {a} 个词元，最多 {b} 个。"],
  long_unknown: ["This is too long for the model.", "超出模型可读长度。"],
  long_mend: ["Shorten the text, or choose a model that reads more.", "请缩短文本，或换用可读更长文本的模型。"],
  gone: ["The model is not loaded any more.", "该模型已不在服务器上。"],
  gone_mend: ["Load this page again to see what there is.", "请刷新页面查看现有模型。"],
  wide: ["This is too much attention to show at once.", "注意力太多，无法一次显示。"],
  wide_mend: ["Shorten the text, or choose a model with fewer layers and heads.", "请缩短文本，或换用层数与头数较少的模型。"],
  large: ["This is more text than the server takes at once.", "文本超出服务器一次可接收的大小。"],
  large_mend: ["Send less at once.", "请减少一次发送的内容。"],
  slow: ["It took longer than it may take.", "用时超出上限。"],
  slow_mend: ["Ask for fewer tokens, or send less text.", "请减少词元数或文本长度。"],
  stopping: ["The server is about to stop, or has unloaded the model.", "服务器即将停止，或已卸载该模型。"],
  stopping_mend: ["Try again in a while.", "请稍后再试。"],
  failed: ["The model failed: an error of the server, not of yours.", "模型出错：这是服务器的错误，与您无关。"],
  failed_mend: ["Try again. If it stays, the server's log says more under {id}.", "请再试一次；若仍如此，服务器日志中 {id} 处有更多说明。"],
  failed_plain: ["Try again. If it stays, the server's log says more.", "请再试一次；若仍如此，请查看服务器日志。"],
  refused: ["The server cannot use this:", "服务器无法处理："],
  refused_mend: ["Change it, then try again.", "请修改后再试。"],
  page_failed: ["This page has failed.", "本页面出错。"],
  page_failed_mend: ["Load it again.", "请刷新页面。"],
};

const KEPT = "zhixing.language";
const ATTRIBUTES = ["aria-label", "placeholder", "title"];
const given = new WeakMap(); // the values of what an element says: {"": values, "aria-label": values}

let chinese = kept() ?? navigator.language.toLowerCase().startsWith("zh");

function kept() {
  try {
    const found = localStorage.getItem(KEPT);
    return found === null ? null : found === "zh";
  } catch {
    return null; // a browser that keeps nothing
  }
}

/** The words of a key in the page's language. */
export function told(key, values = {}) {
  const found = WORDS[key];
  if (found === undefined) throw new Error(`no words for ${key}`);
  return found[chinese ? 1 : 0].replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}

/** A number as the page's language writes it. */
export function number(value, digits = 0) {
  return value.toLocaleString(chinese ? "zh-Hans" : "en", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");
}

export function percent(value) {
  return `${number(value * 100, 1)}%`;
}

/** Let an element say something, now and after a switch of languages. Gives the element. */
export function say(node, key, values = {}) {
  node.dataset.say = key;
  given.set(node, { ...given.get(node), "": values });
  node.textContent = told(key, values);
  return node;
}

export function sayAttribute(node, name, key, values = {}) {
  node.setAttribute(`data-say-${name}`, key);
  given.set(node, { ...given.get(node), [name]: values });
  node.setAttribute(name, told(key, values));
  return node;
}

/** An element that says something. */
export function saying(name, attributes, key, values = {}) {
  return say(el(name, attributes), key, values);
}

/** Be silent. */
export function unsay(node) {
  delete node.dataset.say;
  node.textContent = "";
}

function shown() {
  document.documentElement.lang = chinese ? "zh-Hans" : "en";
  document.getElementById("english").setAttribute("aria-pressed", String(!chinese));
  document.getElementById("chinese").setAttribute("aria-pressed", String(chinese));
  for (const node of document.querySelectorAll("[data-say]")) node.textContent = told(node.dataset.say, given.get(node)?.[""]);
  for (const name of ATTRIBUTES) {
    for (const node of document.querySelectorAll(`[data-say-${name}]`)) {
      node.setAttribute(name, told(node.getAttribute(`data-say-${name}`), given.get(node)?.[name]));
    }
  }
}

/** Show the page in the language that was chosen, else the browser's, and let the two buttons change it. */
export function startLanguage() {
  for (const [id, wanted] of [["english", false], ["chinese", true]]) {
    document.getElementById(id).addEventListener("click", () => {
      chinese = wanted;
      try {
        localStorage.setItem(KEPT, wanted ? "zh" : "en");
      } catch {
        // it holds until the page is left
      }
      shown();
    });
  }
  shown();
}
